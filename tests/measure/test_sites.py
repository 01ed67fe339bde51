"""Pairs of sites are in the order of a forward pass."""

import pytest

from internal_policy.measure.sites import CHANGES, ONLY_AT, SITES, STREAM_OF, WITH_FINAL


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_from_an_earlier_site_to_a_later_one(before, after):
    assert SITES.index(before) < SITES.index(after)


@pytest.mark.parametrize(("module", "streams"), STREAM_OF.items(), ids=STREAM_OF)
def test_the_nearest_stream_before_a_module_comes_first(module, streams):
    places = [SITES.index(site) for site in (module, *streams)]
    assert places == sorted(places, reverse=True)


@pytest.mark.parametrize("sites", ONLY_AT.values(), ids=ONLY_AT)
def test_sites_of_a_measure_are_in_the_order_of_a_forward_pass(sites):
    assert list(sites) == [site for site in WITH_FINAL if site in sites]
