"""The alert rules, by Prometheus' own checks."""

from __future__ import annotations

import subprocess
from typing import Any

import yaml

from tests.monitoring.documented import documented, names_in
from tests.monitoring.prometheus import ALERT_TESTS, ALERTS, METRIC_TABLE, program
from tests.waiting import PATIENCE_SECONDS


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def run_promtool(*arguments: object) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_well_formed() -> None:
    run_promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_not_when_it_should_not() -> None:
    run_promtool("test", "rules", ALERT_TESTS)


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    cases = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    fired = {one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}


def test_each_alert_names_metrics_that_exist_and_is_explained() -> None:
    explained = METRIC_TABLE.read_text()
    for rule in rules():
        assert names_in(rule["expr"]) <= documented().keys(), rule["alert"]
        assert f"`{rule['alert']}`" in explained, rule["alert"]
