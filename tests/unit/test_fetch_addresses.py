"""Which addresses may be connected to."""

from __future__ import annotations

import pytest

from preprocessor.config.fetch import parse_networks
from preprocessor.service.fetch.addresses import AddressRules

PUBLIC = AddressRules(())


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00::1"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert PUBLIC.allow(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
        ),
        "169.254.169.254",  # metadata of most clouds
        "169.254.170.2",  # credentials of containers on AWS
        "100.100.100.200",  # metadata of Alibaba Cloud, in carrier-grade NAT's space
        "100.64.0.1",
        "192.0.0.192",  # metadata of Oracle Cloud
        "168.63.129.16",  # Azure's platform, in public space
        *("192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "192.88.99.1"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("2001:db8::1", "3fff::1", "100::1", "5f00::1", "2001:10::1", "4000::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8"),  # IPv4-mapped, whatever is mapped
        *("::127.0.0.1", "::8.8.8.8"),  # IPv4-compatible
        *("2002:7f00:1::", "2002:808:808::1"),  # 6to4 of 127.0.0.1, of 8.8.8.8
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"),  # NAT64
        *("", "localhost", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "[::1]", "8.8.8.8 ", "8.8.8.8:80"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not PUBLIC.allow(address)


def test_a_named_network_is_allowed_and_its_neighbours_are_not() -> None:
    rules = AddressRules(parse_networks("--fetch-networks", "10.1.0.0/16, fd00:1::/32"))
    assert rules.allow("10.1.255.255") and rules.allow("fd00:1::5")
    assert not rules.allow("10.2.0.0") and not rules.allow("fd00:2::5")


def test_naming_the_form_of_an_address_does_not_name_what_stands_behind_it() -> None:
    rules = AddressRules(parse_networks("--fetch-networks", "64:ff9b::/96,::ffff:0:0/96,2002::/16"))
    assert rules.allow("64:ff9b::808:808") and rules.allow("::ffff:8.8.8.8") and rules.allow("2002:808:808::1")
    assert (
        not rules.allow("64:ff9b::a00:1") and not rules.allow("::ffff:127.0.0.1") and not rules.allow("2002:a00:1::1")
    )


def test_naming_what_stands_behind_an_address_does_not_name_its_form() -> None:
    rules = AddressRules(parse_networks("--fetch-networks", "127.0.0.0/8"))
    assert rules.allow("127.0.0.1") and not rules.allow("::ffff:127.0.0.1") and not rules.allow("64:ff9b::7f00:1")
