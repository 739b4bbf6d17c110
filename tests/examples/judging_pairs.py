"""Compare responses with a language model as judge: pairs, requests in both orders, verdicts, scores.

The judge here is a function that prefers longer responses, except that it prefers the first position when lengths are close: a bias of
position, which asking in both orders turns into a tie. Replace ``answer`` by a call of your server.
"""

from __future__ import annotations

from dora_core.evaluation.llm_judge import Verdict, judging_messages, mean_outcomes, outcome, pairs_among, parse_verdict

PROMPT = [{"role": "user", "content": "Why is the sky blue?"}]
RESPONSES = ["Air scatters blue light more than red light.", "Air scatters blue light more than red.", "Magic."]
SWAP: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}


def answer(messages: list[dict[str, str]]) -> str:
    """Answer of a biased judge to one request."""
    lines = messages[1]["content"].splitlines()
    a, b = (lines[next(i for i, line in enumerate(lines) if f"response {name} begins" in line) + 1] for name in "AB")
    return "Thinking … [[A]]" if len(a) > len(b) - 10 else "[[B]]"


def main() -> list[float]:
    """Return the scores of the responses, in [0, 1]."""
    games = []
    for i, j in pairs_among(RESPONSES, opponents=2):
        first = parse_verdict(answer(judging_messages(PROMPT, RESPONSES[i], RESPONSES[j], "Which response is more correct?")))
        second = parse_verdict(answer(judging_messages(PROMPT, RESPONSES[j], RESPONSES[i], "Which response is more correct?")))
        games.append((i, j, outcome(first, SWAP[second])))
    scores = mean_outcomes(RESPONSES, games, mutual=True).tolist()
    print(f"games {games}, scores {scores}")
    return scores


if __name__ == "__main__":
    main()
