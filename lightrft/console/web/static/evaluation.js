// Held-out prompts before and after: which became right, which became wrong.
(function () {
  "use strict";
  const { html, useState, useMemo } = window.htmPreact;
  const V = window.viewer;
  const KINDS = { all: "all", gained: "wrong → right", lost: "right → wrong", right: "right in both", wrong: "wrong in both", unknown: "not judged" };
  const SIGNS = { gained: "▲", lost: "▼", right: "✓", wrong: "✗", unknown: "?" };

  V.byPrompt = function (evaluation) {
    const found = new Map();
    for (const row of evaluation.responses) {
      if (!found.has(row.prompt_id)) found.set(row.prompt_id, []);
      found.get(row.prompt_id).push(row);
    }
    return found;
  };
  const share = (rows) => V.mean(rows.map((row) => (row.correct === undefined ? row.reward : Number(row.correct))));

  // Exact McNemar test: how likely so uneven a split of the changed prompts is if either way were a coin's toss. As sums of logs.
  V.mcnemar = function (gained, lost) {
    const n = gained + lost;
    if (!n) return 1;
    const logs = [0];
    for (let k = 1; k <= n; k++) logs.push(logs[k - 1] + Math.log(k));
    let p = 0;
    for (let k = 0; k <= Math.min(gained, lost); k++) p += Math.exp(logs[n] - logs[k] - logs[n - k] - n * Math.LN2);
    return Math.min(1, 2 * p);
  };

  // Pairs of the prompts that both have, with what became of each.
  V.pairs = function (before, after) {
    const old = V.byPrompt(before);
    return [...V.byPrompt(after)].filter(([id]) => old.has(id)).map(([id, rows]) => {
      const shares = [share(old.get(id)), share(rows)], [was, is] = shares.map((one) => one >= 0.5);
      return { id, before: old.get(id), after: rows, kind: shares.includes(null) ? "unknown" : was ? (is ? "right" : "lost") : is ? "gained" : "wrong" };
    });
  };

  V.PairTable = function ({ pairs, link, names, number, wheres }) {
    const [kind, setKind] = useState("all");
    const [wanted, setWanted] = useState("");
    const [open, setOpen] = useState(null);
    const [isDiff, setDiff] = useState(false);
    const count = (name) => pairs.filter((pair) => name === "all" || pair.kind === name).length;
    const meets = V.filter(wanted);
    const isWrong = typeof meets === "string";
    const hit = (pair) => [...pair.before, ...pair.after].some((row) => meets({ question: row.question, target: row.target, source: row.source }, row));
    const kept = isWrong ? [] : pairs.filter((pair) => (kind === "all" || pair.kind === kind) && hit(pair));
    return html`<div class="choices" role="group" aria-label="which prompts">${Object.entries(KINDS).map(([name, words]) => html`<button key=${name} aria-pressed=${name === kind} onClick=${() => setKind(name)}>${SIGNS[name] || ""} ${words} (${count(name)})</button>`)}</div>
      <p class="faint">${!pairs.length ? "No prompt is in both." : count("unknown") === pairs.length ? "No response was judged right or wrong." : `McNemar's exact test of ${count("gained")} gained against ${count("lost")} lost: p = ${V.number(V.mcnemar(count("gained"), count("lost")))}`}</p>
      <div class="tools"><label class="grow">filter <input id="search" type="search" placeholder=${V.FILTER_HELP} value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label>
        <label><input type="checkbox" checked=${isDiff} onChange=${(e) => setDiff(e.target.checked)} /> word by word</label></div>
      ${isWrong ? html`<p class="problem" role="alert">${meets}</p>` : null}
      <div class="wide"><table class="rows"><thead><tr><th></th><th>prompt</th><th>reference</th><th class="num">${names[0]}</th><th class="num">${names[1]}</th></tr></thead><tbody>
      ${kept.slice(0, 500).map((pair) => html`<tr key=${pair.id} data-row aria-expanded=${open === pair.id} onClick=${() => setOpen(open === pair.id ? null : pair.id)}>
        <td title=${KINDS[pair.kind]}>${SIGNS[pair.kind]}</td><td class="clip"><button class="plain">${pair.after[0].question || pair.id}</button></td><td class="clip short">${V.text(pair.after[0].target)}</td>
        <td class="num">${V.number(V.mean(pair.before.map((row) => row.reward)))}</td><td class="num">${V.number(V.mean(pair.after.map((row) => row.reward)))}</td></tr>
        ${open === pair.id ? html`<tr key=${pair.id + " open"}><td colspan="5"><div class="ask"><section><h2>Prompt</h2><${V.Text} text=${pair.after[0].question} /></section><section><h2>Reference</h2><${V.Text} text=${V.text(pair.after[0].target)} /></section></div>
          <div class="siblings">${[pair.before, pair.after].map((rows, side) => html`<div key=${side}><h3>${names[side]}</h3>${rows.map((row, n) => html`<${V.ResponseCard} key=${row.place} row=${row} number=${number[side]} where=${wheres[side]} hasLink=${false} against=${isDiff && side === 1 && pair.before.length ? (pair.before[Math.min(n, pair.before.length - 1)].response || "") : undefined}
            prefix=${pair.before.length + pair.after.length === 2 ? V.commonPrefix([pair.before[0].response || "", pair.after[0].response || ""]) : 0} />`)}</div>`)}</div></td></tr>` : null}`)}</tbody></table></div>
      ${kept.length > 500 ? html`<p class="faint">the first 500 of ${kept.length} are shown</p>` : null}`;
  };

  V.views.evaluation = function ({ overview, number, words, version }) {
    const all = Object.keys(overview.evaluations);
    const last = words[0] && all.includes(words[0]) ? words[0] : all[all.length - 1];
    const [first, setFirst] = useState(all[0]);
    const before = V.useAnswer(first && `${number}/evaluation/${first}`, version);
    const after = V.useAnswer(last && `${number}/evaluation/${last}`, version);
    const pairs = useMemo(() => (before.found && after.found ? V.pairs(before.found, after.found) : []), [before.found, after.found]);
    if (!all.length) return html`<h1>Evaluation</h1><p>This run has no held-out evaluation. Set evaluate.before_and_after=true or evaluate.every_steps in the next one.</p>`;
    const pick = (value, set) => html`<select value=${value} onChange=${(e) => set(e.target.value)}>${all.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select>`;
    return html`<h1>Evaluation</h1><div class="tools"><label>from ${pick(first, setFirst)}</label><label>to ${pick(last, (one) => V.go(number, "evaluation", one))}</label></div>
      ${before.error || after.error ? html`<${V.Waiting} state=${before.error ? before : after} />` : before.found && after.found ? html`<${V.PairTable} pairs=${pairs} names=${[first, last]} number=${[number, number]} wheres=${[first, last]} />` : html`<${V.Waiting} state=${before} />`}`;
  };
})();
