"""The plans of a tiny network are those in tests/golden: `python tests/golden_plans.py --write` writes them anew."""

import pytest
from golden_plans import CASES, FOLDER, RANKS, path_of, plan_of, text_of

from minidnn.parallel import check_plan


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_messages_are_the_golden_ones(name, ranks):
    check_plan(plan_of(name, ranks))
    assert text_of(name, ranks).splitlines() == path_of(name, ranks).read_text().splitlines()


def test_no_file_is_left_over():
    assert sorted(FOLDER.iterdir()) == sorted(path_of(name, ranks) for name in CASES for ranks in RANKS)
