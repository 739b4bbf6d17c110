"""Trees of messages: order, roles, broken parents."""

from __future__ import annotations

from tests.dora_core.data.adapter.reading import read_rows, says
from tests.dora_core.data.cases import assistant, user

KEYS = {"shape": "tree", "tree": {"id": "i", "parent": "p", "role": "r", "text": "t", "rank": "k"}}


def node(i, p, r, t, k=None, **more):
    return {"i": i, "p": p, "r": r, "t": t, "k": k, **more}


TREE = [node(1, None, "prompter", "q"), node(2, 1, "assistant", "a", 1), node(3, 1, "assistant", "b", 0)]


def test_answers_may_come_before_their_question():
    read = read_rows(TREE[::-1], KEYS)
    (index,) = read.rows
    assert index == 2 and says(read.rows[2][0]).answers == {"a": -2.0, "b": -1.0}
    assert read.rows[2][0].fields["id"] == "1"


def test_path_from_the_root_is_the_prompt():
    deeper = [node(4, 2, "prompter", "z"), node(5, 4, "assistant", "x", 0), node(6, 4, "assistant", "y", 1)]
    read = read_rows([*TREE, *deeper], KEYS)
    assert says(read.rows[3][0]).prompt == [user("q"), assistant("a"), user("z")]


def test_questions_without_two_ranked_answers_are_left_out_and_counted():
    rows = [
        node(1, None, "prompter", "q"),
        node(2, 1, "assistant", "a", 0),
        node(3, 1, "assistant", "b"),
        *([node(9, None, "prompter", "w")]),
    ]
    read = read_rows([*rows, *[node(n["i"] + 20, n["p"] and n["p"] + 20, n["r"], n["t"], n["k"]) for n in TREE]], KEYS)
    assert len(read.rows) == 1 and read.notes["questions with fewer than two ranked answers, left out"] == 1


def test_broken_trees_are_problems():
    lost = [node(10, 99, "prompter", "q"), node(11, 10, "assistant", "a", 0), node(12, 10, "assistant", "b", 1)]
    circle = [node(20, 21, "prompter", "q"), node(21, 20, "assistant", "a", 0), node(22, 20, "assistant", "b", 1)]
    twice = [node(2, 1, "assistant", "again", 2)]
    read = read_rows([*TREE, *lost, *circle, *twice], KEYS)
    assert list(read.rows) == [0]
    assert {i: {str(p.reason) for p in found} for i, found in read.problems.items()} == {
        3: {"broken_tree"},
        6: {"broken_tree"},
        9: {"broken_tree"},
    }


def test_bad_message_is_a_problem_and_so_are_questions_below_it():
    rows = [
        node(1, None, "wizard", "q"),
        *TREE[1:],
        node(4, 2, "prompter", "z"),
        node(5, 4, "assistant", "x", 0),
        node(6, 4, "assistant", "y", 1),
    ]
    read = read_rows(rows, KEYS)
    assert not read.rows and read.problems[0][0].reason == "unknown_role" and read.problems[3][0].reason == "broken_tree"


def test_rank_below_the_best_is_refused():
    keys = {**KEYS, "tree": {**KEYS["tree"], "rank_base": 1}}
    assert read_rows(TREE, keys).problems[2][0].reason == "unknown_label"
