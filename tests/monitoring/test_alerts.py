"""The alert rules, by Prometheus' own checks."""

from __future__ import annotations

import subprocess
from typing import Any

import yaml

from tests.monitoring.documented import documented, names_in
from tests.monitoring.prometheus import ALERT_TESTS, ALERTS, METRIC_TABLE, ROOT, program
from tests.waiting import PATIENCE_SECONDS

OPERATORS_FORM = ROOT / "deploy/kustomize/components/monitoring/rules.yaml"


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


def test_each_alert_has_a_test_in_which_it_does_not_fire() -> None:
    cases = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    silent = {one["alertname"] for case in cases for one in case["alert_rule_test"] if not one["exp_alerts"]}
    assert silent == {rule["alert"] for rule in rules()}


def test_each_alert_names_metrics_that_exist() -> None:
    for rule in rules():
        assert names_in(rule["expr"]) <= documented().keys(), rule["alert"]


def test_each_alert_links_to_its_runbook_section() -> None:
    for rule in rules():
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith(str(METRIC_TABLE.relative_to(ROOT)))
        assert section == rule["alert"].lower()  # the anchor that Markdown's renderers give to a heading
        assert f"\n### {rule['alert']}\n" in METRIC_TABLE.read_text()


def test_alerts_name_pods_and_not_their_addresses() -> None:
    for rule in rules():
        assert "instance" not in rule["expr"] + str(rule["annotations"]), rule["alert"]


def test_a_cluster_gets_these_alerts_and_no_others() -> None:
    resource = yaml.safe_load(OPERATORS_FORM.read_text())
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == yaml.safe_load(ALERTS.read_text()), "run make reference"
