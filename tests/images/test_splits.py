"""The split of an image is a function of its content, its class and its group, and of nothing else."""

import hashlib
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featcache.images.splits import assign, position
from featcache.spec import ImageRow, SplitSpec, unit_of, units_of

SPEC = SplitSpec()


def digest(content):
    return hashlib.sha256(str(content).encode()).hexdigest()


def row(content, label="a", group="", split="", path=None):
    return ImageRow(path or f"{label}/{content}.png", label, group, split, digest(content))


def splits_of(rows, spec=SPEC):
    return {row.path: row.split for row in assign(rows, spec)}


def has_a_training_image_by_hash(rows, label, spec):
    return any(position(unit_of(row), spec.seed) * 100 < spec.train for row in rows if row.label == label)


@st.composite
def manifests(draw):
    """Rows of some classes and groups, no two of the same content."""
    found = draw(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "g", "h"])), min_size=1, max_size=40)
    )
    offset = draw(st.integers(0, 10_000))
    return [row(offset + at, label, group and f"{label}-{group}-{offset}") for at, (label, group) in enumerate(found)]


@given(rows=manifests(), more=manifests(), seed=st.integers(0, 3))
def test_adding_images_moves_nobody(rows, more, seed):
    assume(not {one.digest for one in rows} & {one.digest for one in more})
    spec = SplitSpec(seed=seed)
    before, after = splits_of(rows, spec), splits_of(rows + more, spec)
    for one in rows:
        if has_a_training_image_by_hash(rows, one.label, spec):
            assert after[one.path] == before[one.path]


@given(rows=manifests(), seed=st.integers(0, 3), data=st.data())
def test_the_order_of_the_files_does_not_matter(rows, seed, data):
    shuffled = data.draw(st.permutations(rows))
    assert splits_of(shuffled, SplitSpec(seed=seed)) == splits_of(rows, SplitSpec(seed=seed))


@given(rows=manifests(), seed=st.integers(0, 3))
def test_every_class_has_a_training_image(rows, seed):
    trained = {one.label for one in assign(rows, SplitSpec(5, 45, 50, seed)) if one.split == "train"}
    assert trained == {one.label for one in rows}


@given(rows=manifests(), seed=st.integers(0, 3))
def test_groups_stay_together(rows, seed):
    splits = {}
    for one in assign(rows, SplitSpec(34, 33, 33, seed)):
        if one.group:
            splits.setdefault(one.group, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())


@given(contents=st.lists(st.integers(0, 5), min_size=1, max_size=30), seed=st.integers(0, 3))
def test_copies_in_other_folders_and_classes_never_cross_splits(contents, seed):
    rows = [row(one, "abc"[at % 3], path=f"{at}.png") for at, one in enumerate(contents)]
    splits = {}
    for one in assign(rows, SplitSpec(34, 33, 33, seed)):
        splits.setdefault(one.digest, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())


@st.composite
def copied(draw):
    """Rows of few contents in few groups, so that copies stand in several groups, in none, and in several classes."""
    facts = st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.sampled_from(["", "g", "h", "i", "j", "k"]))
    found = draw(st.lists(facts, min_size=1, max_size=30))
    return [row(content, label, group, path=f"{at}.png") for at, (content, label, group) in enumerate(found)]


def splits_by(rows, name):
    splits = {}
    for one in rows:
        if getattr(one, name):
            splits.setdefault(getattr(one, name), set()).add(one.split)
    return splits


@given(rows=copied(), seed=st.integers(0, 3))
def test_no_copy_and_no_group_ever_stands_in_two_splits(rows, seed):
    assigned = assign(rows, SplitSpec(34, 33, 33, seed))
    for name in ("digest", "group"):
        assert all(len(found) == 1 for found in splits_by(assigned, name).values())


@given(rows=copied(), seed=st.integers(0, 3), data=st.data())
def test_the_order_of_copies_in_groups_does_not_matter(rows, seed, data):
    shuffled = data.draw(st.permutations(rows))
    assert splits_of(shuffled, SplitSpec(seed=seed)) == splits_of(rows, SplitSpec(seed=seed))


@given(rows=copied())
def test_a_unit_is_all_that_groups_and_copies_link_and_nothing_else(rows):
    units = units_of(rows)
    links = {unit: {at for at, other in enumerate(units) if other == unit} for unit in units}
    for members in links.values():
        reached, new = set(), {min(members)}
        while new:
            reached |= new
            groups = {rows[at].group for at in reached} - {""}
            digests = {rows[at].digest for at in reached}
            new = {at for at, one in enumerate(rows) if one.group in groups or one.digest in digests} - reached
        assert reached == members


def test_images_that_no_copy_links_have_the_unit_they_always_had():
    rows = [row(1), row(2, group="g"), row(3, group="g"), row(4, group="h")]
    assert units_of(rows) == [unit_of(one) for one in rows]


def test_a_row_without_a_split_stays_out_of_test_if_its_group_is_in_train_too():
    rows = [row(at, group="g", split=split) for at, split in enumerate(["test", "train", "val", ""])]
    assert [one.split for one in assign(rows, SPEC)] == ["test", "train", "val", "train"]


def test_names_and_folders_do_not_matter():
    here = assign([row(at, path=f"a/{at}.png") for at in range(50)], SPEC)
    there = assign([row(at, path=f"a/deep/{99 - at}.jpg") for at in range(50)], SPEC)
    assert [one.split for one in here] == [one.split for one in there]


def test_another_seed_gives_another_split():
    rows = [row(at) for at in range(50)]
    assert splits_of(rows, SplitSpec(seed=0)) != splits_of(rows, SplitSpec(seed=1))


def test_shares_come_out_about_right():
    counts = Counter(one.split for one in assign([row(at) for at in range(10_000)], SPEC))
    assert {split: round(count / 100) for split, count in counts.items()} == pytest.approx(
        {"train": 70, "val": 15, "test": 15}, abs=2
    )


def test_each_class_is_cut_at_the_same_shares():
    rows = [row(at, "ab"[at % 4 == 0]) for at in range(10_000)]
    counts = Counter((one.label, one.split) for one in assign(rows, SPEC))
    assert counts["a", "test"] / 7500 == pytest.approx(counts["b", "test"] / 2500, abs=0.02)


@pytest.mark.parametrize(
    ("unit", "seed", "golden"),
    [
        ("", 0, 0.7283713340583249),
        ("a" * 64, 0, 0.9275164811416686),
        ("a" * 64, 1, 0.6340479866744598),
        ("group:patient 7", 0, 0.9404522316822693),
        ("group:caf\udce9", 3, 0.24092857910556148),
    ],
)
def test_the_hash_never_drifts(unit, seed, golden):
    assert position(unit, seed) == golden


def test_a_split_that_folders_decided_stays():
    rows = [row(at, split=("train", "val", "test")[at % 3]) for at in range(30)]
    assert assign(rows, SPEC) == rows


def test_copies_of_a_decided_image_follow_it():
    rows = [row(1, split="test", path="test/a/1.png"), row(1, path="train/a/1.png"), row(2, path="train/a/2.png")]
    assert assign(rows, SplitSpec(100, 0, 0))[1].split == "test"


def test_images_without_a_label_have_no_split():
    assert assign([row(1, label="")], SPEC)[0].split == ""


def test_a_share_of_nothing_gets_nothing():
    assert set(splits_of([row(at) for at in range(300)], SplitSpec(80, 20, 0)).values()) == {"train", "val"}
