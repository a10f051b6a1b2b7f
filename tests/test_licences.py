from licences import licences, unfit


def test_every_locked_package_has_a_licence_that_fits_beside_mit():
    found = licences()
    assert len(found) > 100
    assert unfit(found) == {}


def test_licences_that_a_person_must_look_at_are_found():
    fit = ("MIT", "BSD-3-Clause AND ISC", None)  # None: of another platform
    bad = ("GPL-3.0-only", "MIT AND LGPL-2.1", "Proprietary", "none named")
    assert set(unfit({str(text): text for text in fit + bad})) == set(bad)
