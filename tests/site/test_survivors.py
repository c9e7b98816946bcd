"""The page of changes that no test noticed."""

import survivors


def test_each_change_that_no_test_noticed_has_a_reason():
    names = [row["mutant"] for row in survivors.unnoticed()]
    assert sorted(names) == sorted(survivors.reasons())
    assert all(reason[0].islower() for reason in survivors.reasons().values())


def test_at_least_nine_in_ten_were_noticed():
    found = survivors.report()
    assert len(found["mutants"]) == found["sample"] == sum(found["counts"].values()) == 300
    assert found["counts"]["killed"] >= 270


def test_bars_in_code_do_not_end_a_cell():
    rows = survivors.mutants_table().splitlines()[2:]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {3}
