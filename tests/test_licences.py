import pytest
from licences import licences, unfit


def test_every_locked_package_has_a_licence_that_fits_beside_mit():
    found = licences()
    assert len(found) > 100
    assert unfit(found) == {}


@pytest.mark.parametrize(
    ("licence", "bad"),
    [
        ("MIT", False),
        ("BSD-3-Clause AND ISC", False),
        (None, False),  # of another platform
        ("GPL-3.0-only", True),
        ("MIT AND LGPL-2.1", True),
        ("Proprietary", True),
        ("none named", True),
    ],
)
def test_licences_that_a_person_must_look_at_are_found(licence, bad):
    assert ("package" in unfit({"package": licence})) is bad
