// One response token by token. The tokens are made once, in blocks that the browser lays out only where they are seen; a colouring
// changes their classes. So 32,768 tokens stay fluent.
(function () {
  "use strict";
  const { html, useState, useEffect, useLayoutEffect, useRef, useMemo } = window.htmPreact;
  const V = window.viewer;
  const BLOCK = 256, LONGEST = 2048;

  const visible = (piece) => (piece === "" ? "·" : piece.replaceAll("\n", "↵\n").replaceAll("\t", "→\t"));

  // Spans of text alone: nothing that a model wrote is ever read as markup.
  function build(place, pieces) {
    place.textContent = "";
    const spans = [];
    let block = null;
    pieces.forEach((piece, n) => {
      if (block === null) {
        block = document.createElement("span");
        block.className = "block";
        place.append(block);
      }
      const span = document.createElement("span");
      span.textContent = visible(piece);
      span.dataset.n = n;
      block.append(span);
      spans.push(span);
      // A block begins a line, so it ends at one where it can.
      const size = block.childElementCount;
      if ((size >= BLOCK && piece.endsWith("\n")) || size >= LONGEST) block = null;
    });
    return spans;
  }

  function Tokens({ columns, colouring, at, onPoint }) {
    const place = useRef(null);
    const spans = useRef([]);
    const marked = useRef(null);
    useLayoutEffect(() => { spans.current = build(place.current, columns.pieces); marked.current = null; }, [columns]);
    useLayoutEffect(() => { V.classes(columns, colouring).forEach((name, n) => { spans.current[n].className = name; }); }, [columns, colouring]);
    useEffect(() => {
      if (marked.current) marked.current.removeAttribute("aria-current");
      marked.current = at === null ? null : spans.current[at.n];
      if (!marked.current) return;
      marked.current.setAttribute("aria-current", "true");
      if (at.jump) marked.current.scrollIntoView({ block: "center" });
    }, [at, columns]);
    const point = (event) => { if (event.target.dataset && event.target.dataset.n !== undefined) onPoint({ n: Number(event.target.dataset.n), jump: false }); };
    return html`<div ref=${place} class="tokens text" onMouseOver=${point} onClick=${point}></div>`;
  }

  function Values({ columns, at, colouring }) {
    if (at === null) return html`<p class="faint">Point at a token, or use ← and →, to see all its columns.</p>`;
    return html`<dl class="values"><dt>token ${at.n}</dt><dd><code>${JSON.stringify(columns.pieces[at.n])}</code>${columns.ids ? " id " + columns.ids[at.n] : ""}${columns.mask && !columns.mask[at.n] ? ", not by the policy" : ""}</dd>
      ${V.colourings(columns).map((name) => html`<div key=${name} class=${name === colouring ? "now" : ""}><dt>${V.describe(name)[0]}</dt><dd>${V.number(columns[name][at.n], 4)}</dd></div>`)}</dl>`;
  }

  V.views.tokens = function ({ number, words, theme }) {
    const [step, place] = words.map(Number);
    const state = V.useAnswer(`${number}/tokens/${step}/${place}`);
    const siblings = V.useAnswer(`${number}/groups/${step}`);
    const columns = useMemo(() => state.found && V.withDerived(state.found.columns), [state.found]);
    const names = columns ? V.colourings(columns) : [];
    const [chosen, choose] = useState("behavior");
    const [at, setAt] = useState(null);
    const colouring = names.includes(chosen) ? chosen : names[0];
    useEffect(() => setAt(null), [columns]);
    useEffect(() => {
      const press = (event) => {
        if (!columns || V.isTyping(event)) return;
        const n = Number(event.key) - 1;
        if (n >= 0 && n < names.length) choose(names[n]);
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (move) { event.preventDefault(); setAt((old) => ({ n: Math.max(0, Math.min(columns.pieces.length - 1, (old ? old.n : -1) + move)), jump: true })); }
      };
      document.addEventListener("keydown", press);
      return () => document.removeEventListener("keydown", press);
    }, [columns]);
    if (!columns) return html`<h1>Response ${words[1]} of step ${words[0]}</h1><${V.Waiting} state=${state} />`;
    if (!columns.pieces) return html`<p class="problem">The run saved no texts of tokens.</p>`;
    const group = siblings.found && siblings.found.groups.find((one) => one.responses.some((row) => row.place === place));
    const row = group && group.responses.find((one) => one.place === place);
    const next = (move) => group && group.responses[group.responses.indexOf(row) + move];
    const values = columns[colouring];
    const jump = (sign) => {
      let best = null;
      values.forEach((value, n) => { if (value !== null && (best === null || sign * value > sign * values[best])) best = n; });
      if (best !== null) setAt({ n: best, jump: true });
    };
    const xs = values.map((_, n) => n);
    return html`<nav class="around">${group ? html`<a href=${V.link(number, "group", step, group.number)}>group ${group.number}</a>` : null}
        ${next(-1) ? html`<a data-key="k" href=${V.link(number, "tokens", step, next(-1).place)}>← previous <kbd>k</kbd></a>` : null}
        ${next(1) ? html`<a data-key="j" href=${V.link(number, "tokens", step, next(1).place)}>next <kbd>j</kbd> →</a>` : null}</nav>
      <h1>Response ${place} of step ${step} ${row ? html`<span class="faint">reward ${V.number(row.reward)}, ${row.length} tokens, ${V.ended(row)}</span>` : null}</h1>
      ${group ? html`<details><summary>prompt</summary><${V.Text} text=${group.question} /></details>` : null}
      <div class="choices" role="group" aria-label="colouring">${names.map((name, n) => html`<button key=${name} aria-pressed=${name === colouring} onClick=${() => choose(name)}>${n < 9 ? html`<kbd>${n + 1}</kbd> ` : null}${V.describe(name)[0]}</button>`)}</div>
      <p class="faint">${V.describe(colouring)[2]}; blue has a solid line below, orange a dotted one; striped: not by the policy.
        <button onClick=${() => jump(1)}>to the largest</button> <button onClick=${() => jump(-1)}>to the smallest</button></p>
      <div class="reading"><${Tokens} columns=${columns} colouring=${colouring} at=${at} onPoint=${setAt} /><aside><${Values} columns=${columns} at=${at} colouring=${colouring} /></aside></div>
      <div class="panel"><h3>${V.describe(colouring)[0]} <span class="faint">by token; click to see the token</span></h3>
        <${V.Chart} key=${colouring + place} height=${130} series=${[{ name: colouring, xs, ys: values }]} mark=${at && at.n} onPick=${(n) => setAt({ n, jump: true })} theme=${theme} /></div>`;
  };
})();
