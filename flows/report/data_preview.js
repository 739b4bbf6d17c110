// Table of the data page: filters the rows in the page, and draws a hundred of them at a time.
"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const byId = (id) => document.getElementById(id);
  const body = document.querySelector("#records tbody");
  const BATCH = 100;
  let matching = [], drawn = 0;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  for (const row of rows) {
    const parts = row.kind === "record"
      ? [row.at, row.id, ...row.prompt.map((turn) => turn[1]), ...row.responses.flatMap((r) => [r[0] || "", r[3]])]
      : [row.at, row.reason, row.text];
    row.haystack = parts.join("\n").toLowerCase();
    const factors = (row.responses || []).map((r) => r[2]).filter((h) => h !== null);
    row.low = Math.min(...factors);
    row.high = Math.max(...factors);
  }
  const options = (id, values) => {
    for (const value of [...new Set(values)].sort()) byId(id).append(new Option(value, value));
  };
  options("source", rows.flatMap((row) => (row.responses || []).map((r) => r[0]).filter((name) => name !== null)));
  options("split", rows.map((row) => row.split).filter((name) => name));

  const number = (value) => (value === null ? "–" : String(Math.round(value * 1000) / 1000));
  const draw = (row) => {
    const line = document.createElement("tr");
    line.append(element("td", row.at, "name"));
    if (row.kind === "quarantine") {
      const cell = element("td", `${row.reason}: ${row.text}`, "refused");
      cell.colSpan = 3;
      line.append(cell);
      return line;
    }
    line.append(element("td", row.split));
    const prompt = element("td", undefined, "prompt");
    const turns = element("div", undefined, "clip");
    for (const [role, text] of row.prompt) {
      const turn = element("div", undefined, "text");
      turn.append(element("span", role, "role"), text);
      turns.append(turn);
    }
    prompt.append(turns);
    const responses = document.createElement("td");
    const best = Math.max(...row.responses.map((r) => (r[1] === null ? -Infinity : r[1])));
    for (const [source, reward, factor, text] of row.responses) {
      const answer = element("div", undefined, "answer" + (reward !== null && reward === best ? " best" : ""));
      const facts = [source === null ? "(unknown)" : source, `reward ${number(reward)}`];
      if (factor !== null) facts.push(`h ${number(factor)}`);
      answer.append(element("div", facts.join(" · "), "role"), element("div", text, "text clip"));
      responses.append(answer);
    }
    line.append(prompt, responses);
    return line;
  };
  const more = () => {
    const next = document.createDocumentFragment();
    for (const row of matching.slice(drawn, drawn + BATCH)) next.append(draw(row));
    body.append(next);
    drawn = Math.min(matching.length, drawn + BATCH);
    byId("more").hidden = drawn >= matching.length;
    byId("found").textContent = `${matching.length} of ${rows.length} rows match` + (drawn < matching.length ? `, ${drawn} shown` : "");
  };
  const value = (id) => (byId(id) ? byId(id).value : "");
  const filter = () => {
    const words = [...value("search").toLowerCase().matchAll(/"([^"]+)"|\S+/g)].map((found) => found[1] || found[0]);
    const kind = value("kind"), source = value("source"), split = value("split");
    const low = value("low") === "" ? null : Number(value("low")), high = value("high") === "" ? null : Number(value("high"));
    matching = rows.filter((row) =>
      words.every((word) => row.haystack.includes(word)) && (!kind || row.kind === kind) && (!split || row.split === split) &&
      (!source || (row.responses || []).some((r) => r[0] === source)) &&
      (low === null || row.high >= low) && (high === null || row.low <= high));
    const order = value("order");
    const key = (row) => (Number.isFinite(row.high) ? row.high : -Infinity);
    if (order) matching = matching.slice().sort((a, b) => (order === "up" ? key(a) - key(b) : key(b) - key(a)));
    body.replaceChildren();
    drawn = 0;
    more();
  };
  for (const id of ["search", "kind", "source", "split", "low", "high", "order"]) if (byId(id)) byId(id).addEventListener("input", filter);
  byId("more").addEventListener("click", more);
  filter();
})();
