"""scikit-learn's own checks of an estimator, where they apply to images.

Most checks make a table of numbers, which holds no images. `OfNumbers` turns each of its rows into an image, so that
these checks, too, see the extractor at work: pickled, cloned, fitted twice, on rows in another order.
"""

import numpy as np
import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

import featcache as fc

PIXELS = "pixels:size=8"
WITHOUT_DATA = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)


class OfNumbers(fc.FeatureExtractor):
    """The extractor on images whose pixels are the bytes of rows of numbers: equal rows give equal images."""

    def fit(self, X, y=None):
        images = self._drawn(X, reset=True)
        of_numbers = {name: value for name, value in vars(self).items() if name.endswith("_in_")}
        super().fit(images)
        vars(self).update(of_numbers)  # for these checks, the numbers are the features that come in
        return self

    def fit_transform(self, X, y=None):
        return self.fit(X).transform(X)

    def transform(self, X):
        return super().transform(self._drawn(X, reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags

    def _drawn(self, X, *, reset):
        numbers = validate_data(self, X, reset=reset, dtype=np.float64)
        return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), 1, -1)


@pytest.mark.parametrize("check", WITHOUT_DATA)
def test_the_extractor_passes_the_checks_that_need_no_data(check):
    getattr(estimator_checks, check)("FeatureExtractor", fc.FeatureExtractor(PIXELS))


@parametrize_with_checks([OfNumbers(PIXELS)])
def test_the_extractor_passes_the_checks_on_rows_of_numbers_drawn_as_images(estimator, check):
    check(estimator)


def test_the_extractor_passes_the_check_of_its_output():
    estimator_checks.check_set_output_transform("OfNumbers", OfNumbers(PIXELS))
