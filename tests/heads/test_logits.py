import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax as reference

from featcache.heads.logits import softmax


@given(seed=st.integers(0, 999), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_softmax_is_a_distribution_and_does_not_overflow(seed, size):
    logits = np.random.default_rng(seed).normal(0, size, (5, 4))
    found = softmax(logits)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found, reference(logits, axis=1), atol=1e-12)
