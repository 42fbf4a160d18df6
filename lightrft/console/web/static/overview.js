// A run at a glance: how it went, what to do about it, its curves, the time of its phases, and its settings.
(function () {
  "use strict";
  const { html, useState } = window.htmPreact;
  const V = window.viewer;
  const FILLS = ["--blue", "--orange", "--green", "--purple", "--sky", "--red"];
  const MOST_BARS = 60;
  const phasesOf = (overview) => Object.keys(overview.metrics).filter((name) => name.startsWith("seconds/") && name !== "seconds/step").map((name) => name.slice(8));
  const HELD_OUT = ["evaluation/mean", "held_out_nll/mean", "held_out_error/mean", "pairs/mean"];

  // What was measured of a task: its score, or what runs from given responses have: a loss, or the accuracy of each output.
  function measured(task, one) {
    if (one.score) return [{ task, ...one.score }];
    return Object.keys(one).filter((name) => name === "held_out_nll" || name === "held_out_error" || /\/(sign_)?accuracy$/.test(name)).map((name) => {
      const end = (which) => one[name.replace(/\/accuracy$/, "/" + which)];
      const known = name.endsWith("/accuracy");
      return { task: `${task}, ${name}`, mean: one[name], low: known ? end("low") : null, high: known ? end("high") : null };
    });
  }

  // One line for each evaluation and task: score and 95 % interval, drawn and written.
  function Scores({ overview, number }) {
    const lines = Object.entries(overview.evaluations).flatMap(([when, tasks]) =>
      Object.entries(tasks || {}).flatMap(([task, one]) => measured(task, one || {}).map((found) => ({ when, ...found }))));
    if (!lines.length) return null;
    const low = Math.min(0, ...lines.map((one) => one.low ?? one.mean ?? 0)), high = Math.max(1, ...lines.map((one) => one.high ?? one.mean ?? 1));
    const at = (value) => 100 * (value - low) / (high - low);
    return html`<section><h2>Held-out scores</h2><div class="wide"><table class="scores"><thead><tr><th>when</th><th>task</th><th class="num">score</th><th class="num">95 % interval</th><th>from ${V.number(low)} to ${V.number(high)}</th></tr></thead>
      <tbody>${lines.map((one, n) => html`<tr key=${n}><td><a href=${V.link(number, "evaluation", one.when)}>${one.when}</a></td><td>${one.task}</td>
        <td class="num">${V.number(one.mean)}</td><td class="num">${V.number(one.low)} – ${V.number(one.high)}</td>
        <td class="bar">${one.mean === null || one.low === null ? null : html`<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="track" x="0" y="4.5" width="100" height="1" />
          <rect class="interval" x=${at(one.low)} y="2.5" width=${Math.max(0.5, at(one.high) - at(one.low))} height="5" /><rect class="mean" x=${at(one.mean) - 0.4} y="0" width="0.8" height="10" /></svg>`}</td></tr>`)}</tbody></table></div></section>`;
  }

  function Advice({ overview }) {
    if (!overview.advice.length && overview.problems.length) return null;
    if (!overview.advice.length) return html`<p class="advice good"><b>✓ No alarm.</b> No rule found anything to say about this run.</p>`;
    return html`<section class="cards">${overview.advice.map((one) => html`<article key=${one.rule} class=${"advice " + one.level}>
      <h3>${one.level === "alarm" ? "⚠ Alarm" : "→ Advice"}: ${V.words(one.rule)}</h3><p>${one.sentence}</p>
      <dl><dt>Seen</dt><dd>${one.evidence}</dd><dt>Change</dt><dd>${one.option}</dd><dt>Source</dt><dd>${one.source.startsWith("https://") ? html`<a href=${one.source} rel="noreferrer">${one.source}</a>` : one.source}</dd></dl></article>`)}</section>`;
  }

  function Curves({ overview, number, theme }) {
    const [smooth, setSmooth] = useState(1);
    const [isLog, setLog] = useState(false);
    const [more, setMore] = useState("");
    const names = Object.keys(overview.metrics).filter((name) => name !== "step" && name !== "time");
    const open = (x) => overview.steps.includes(x) && V.go(number, "groups", x);
    const panels = overview.panels.map((panel, n) => {
      const held = n === 0 ? HELD_OUT.filter((name) => name in overview.metrics) : [];
      return { title: panel.title, unit: panel.unit, series: [...panel.names.map((name) => V.series(overview, name, { smooth, legend: name !== panel.title })), ...held.map((name) => V.series(overview, name, { points: true, name: name === "evaluation/mean" ? "held-out score" : name }))] };
    });
    const wanted = more ? names.filter((name) => name.toLowerCase().includes(more.toLowerCase())).slice(0, 12) : [];
    return html`<section><h2>Curves</h2><div class="tools">
      <label>smooth over <select value=${smooth} onChange=${(e) => setSmooth(Number(e.target.value))}>${[1, 3, 5, 10, 30, 100].map((n) => html`<option key=${n} value=${n}>${n === 1 ? "1 step" : n + " steps"}</option>`)}</select></label>
      <label><input type="checkbox" checked=${isLog} onChange=${(e) => setLog(e.target.checked)} /> log scale</label>
      <label>also draw <input type="search" placeholder="part of a metric's name" list="metrics" value=${more} onInput=${(e) => setMore(e.target.value)} /></label>
      <datalist id="metrics">${names.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
      <span class="faint">drag to zoom, double-click to zoom out; click a step whose responses are saved to see them</span></div>
      <div class="grid">${[...panels, ...wanted.map((name) => ({ title: name, unit: "", series: [V.series(overview, name, { smooth })] }))].map((panel) => html`<div class="panel" key=${panel.title}>
        <h3>${panel.title} <span class="faint">${panel.unit}</span></h3><${V.Chart} series=${panel.series} isLog=${isLog} sync=${"run" + number} onPick=${open} theme=${theme} label=${panel.title} /></div>`)}</div></section>`;
  }

  // Seconds of each phase as stacked bars; many steps are taken together.
  function Phases({ overview }) {
    const names = phasesOf(overview).map((name) => "seconds/" + name);
    const known = overview.metrics.step.map((_, n) => n).filter((n) => names.some((name) => overview.metrics[name][n] > 0));
    if (!known.length) return null;
    const per = Math.ceil(known.length / MOST_BARS);
    const bars = [];
    for (let n = 0; n < known.length; n += per) {
      const rows = known.slice(n, n + per);
      bars.push({ from: overview.metrics.step[rows[0]], to: overview.metrics.step[rows[rows.length - 1]], parts: names.map((name) => V.mean(rows.map((row) => overview.metrics[name][row] || 0))) });
    }
    const most = Math.max(...bars.map((bar) => bar.parts.reduce((a, b) => a + b, 0))) || 1;
    const memory = ["memory/rss_gib", ...Object.keys(overview.metrics).filter((name) => name.startsWith("memory/device/"))].filter((name) => name in overview.metrics);
    return html`<section><h2>Time and memory</h2><div class="grid"><div class="panel"><h3>phases <span class="faint">seconds per step, at most ${V.number(most)}</span></h3>
      <p class="legend">${names.map((name, n) => html`<span class="key" key=${name}><i class=${"swatch f" + (n % 6)}></i>${name.slice(8)}</span>`)}</p>
      <div class="bars" role="img" aria-label="seconds of each phase by step">${bars.map((bar) => html`<div class="stack" key=${bar.from} title=${`${bar.from === bar.to ? "step " + bar.from : `steps ${bar.from}-${bar.to}`}: ` + names.map((name, n) => `${name.slice(8)} ${V.number(bar.parts[n])} s`).join(", ")}>
        ${bar.parts.map((part, n) => html`<i key=${n} class=${"f" + (n % 6)} style=${{ height: 100 * part / most + "%" }}></i>`)}</div>`)}</div></div>
      ${memory.length ? html`<div class="panel"><h3>memory <span class="faint">GiB</span></h3><${V.Chart} series=${memory.map((name) => V.series(overview, name, { legend: true }))} /></div>` : null}</div></section>`;
  }

  // When which rank was in which phase, in the colours of the bars above: one lane for each rank, and one more for what it samples beside its steps.
  function Timeline({ overview }) {
    const rows = overview.timeline || [];
    if (!rows.length) return null;
    const phases = [...new Set([...phasesOf(overview), ...rows.map((row) => row.phase)])], ranks = [...new Set(rows.map((row) => row.rank))];
    const lanes = ranks.flatMap((rank) => [false, true].map((beside) => ({ name: `rank ${rank}` + (beside ? ", beside" : ""), rows: rows.filter((row) => row.rank === rank && Boolean(row.beside) === beside) })).filter((lane) => lane.rows.length));
    const end = Math.max(...rows.map((row) => row.start + row.seconds)) || 1, steps = rows.map((row) => row.step);
    const tell = (row) => `step ${row.step}, ${row.phase}: from ${V.number(row.start)} s, ${V.number(row.seconds)} s` + (row.waited > 0 ? `, ${V.number(row.waited)} s of it waiting` : "") + (row.moved.length ? `; moved ${row.moved.join(", ")}` : "") + (row.peak_bytes ? `; at most ${V.number(row.peak_bytes / 2 ** 30)} GiB` : "");
    return html`<section><h2>Timeline <span class="faint">steps ${Math.min(...steps)} to ${Math.max(...steps)}, ${V.number(end)} s</span></h2>
      <p class="legend">${phases.map((name, n) => (rows.some((row) => row.phase === name) ? html`<span class="key" key=${name}><i class=${"swatch f" + (n % 6)}></i>${name}</span>` : null))}</p>
      ${lanes.map((lane) => html`<div class="lane" key=${lane.name}><span class="faint">${lane.name}</span><div role="img" aria-label=${"phases of " + lane.name}>${lane.rows.map((row, n) => html`<i key=${n} class=${"f" + (phases.indexOf(row.phase) % 6)} title=${tell(row)} style=${{ left: 100 * row.start / end + "%", width: 100 * row.seconds / end + "%" }}></i>`)}</div></div>`)}</section>`;
  }

  function Settings({ overview }) {
    const [wanted, set] = useState("");
    const lines = Object.entries(overview.config).filter(([name, value]) => (name + V.text(value)).toLowerCase().includes(wanted.toLowerCase()));
    return html`<details><summary>Settings (${Object.keys(overview.config).length})</summary>
      <input type="search" placeholder="part of a name or value" value=${wanted} onInput=${(e) => set(e.target.value)} />
      <div class="wide"><table><tbody>${lines.map(([name, value]) => html`<tr key=${name}><td><code>${name}</code></td><td>${V.text(value)}</td></tr>`)}</tbody></table></div></details>`;
  }

  V.views.overview = function ({ overview, number, theme }) {
    const steps = overview.metrics.step || [];
    const last = steps.length ? steps[steps.length - 1] : 0;
    return html`<h1>${overview.title}</h1>
      <p class="faint">${overview.status || (overview.finished ? "finished" : "not finished")} · ${last}${overview.config.steps > 0 ? ` of ${overview.config.steps}` : null} steps · responses of ${overview.steps.length} steps saved</p>
      ${overview.problems.map((one, n) => html`<p class="problem" role="alert" key=${n}>Not readable: ${one}</p>`)}
      <${Advice} overview=${overview} /><${Scores} overview=${overview} number=${number} />
      ${steps.length ? html`<${Curves} overview=${overview} number=${number} theme=${theme} /><${Phases} overview=${overview} /><${Timeline} overview=${overview} />` : html`<p>No step has been logged yet.</p>`}
      <${Settings} overview=${overview} />`;
  };
})();
