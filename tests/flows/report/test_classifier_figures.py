"""Figures of the source classifiers."""

from __future__ import annotations

from flows.report.classifier_figures import auc, classifier_loss, reliability
from tasks.stages import classify
from tests.flows.report.runs import make_facts

WRITTEN = make_facts(["human", "a", "b", "c"])["classify"]


def test_heads_are_ordered_by_auc_and_the_ones_without_are_left_out() -> None:
    sources = WRITTEN["sources"] | {"tiny": WRITTEN["sources"]["a"] | {"auc": None, "auc_low": None, "auc_high": None, "ece": None}}
    facts = classify.Facts.model_validate(WRITTEN | {"sources": sources})
    figure = auc(facts)
    known = {name: head.auc for name, head in facts.sources.items() if head.auc is not None}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == sorted(known, key=lambda name: -known[name])
    assert len([axes for axes in reliability(facts).axes if axes.axison]) == len(known) == 3


def test_a_line_for_every_fold_in_the_order_of_its_steps() -> None:
    facts = classify.Facts.model_validate(WRITTEN | {"curve": WRITTEN["curve"][::-1]})
    lines = classifier_loss(facts).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["fold 0", "fold 1", "fold 2"]
    assert all(list(line.get_xdata()) == sorted(line.get_xdata()) for line in lines)


def test_a_classifier_that_was_never_judged_has_no_figures() -> None:
    facts = classify.Facts.model_validate(WRITTEN | {"sources": {}, "curve": []})
    assert auc(facts) is reliability(facts) is classifier_loss(facts) is None
