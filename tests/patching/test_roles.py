"""What a generated class is remembered by."""

import dataclasses
import typing

import pytest

from posenc.patching.sites import roles

ROLES = typing.get_args(roles.Role)


def test_each_role_has_its_place_in_the_order():
    assert sorted(roles.ORDER, key=ROLES.index) == list(ROLES)


@pytest.mark.parametrize("cls", ROLES, ids=lambda cls: cls.__name__)
def test_equal_roles_are_one(cls):
    """Or each patch of a model would generate, and compile, classes of its own."""
    values = [f"{field.name} of {cls.__name__}" for field in dataclasses.fields(cls)]
    assert len({cls(*values), cls(*values)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls(*values).method = "another"
