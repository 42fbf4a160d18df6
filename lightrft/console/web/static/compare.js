// Two runs beside each other: what was set differently, their curves over each other, and the same prompt in both.
(function () {
  "use strict";
  const { html, useState, useMemo } = window.htmPreact;
  const V = window.viewer;
  const AXES = { step: "steps", tokens: "tokens read", hours: "hours" };

  function differences(runs) {
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
    return names.filter((name) => new Set(runs.map((run) => JSON.stringify(run.config[name]))).size > 1);
  }

  // Where each logged line lies on an axis: its step, the tokens read until then, or the hours since the first line.
  function places(run, axis) {
    const steps = run.metrics.step || [];
    if (axis === "step") return steps;
    if (axis === "hours") return run.metrics.time.map((time) => (time - run.metrics.time[0]) / 3600);
    let sum = 0;
    return steps.map((_, n) => (sum += (run.metrics["counts/tokens_read"] || [])[n] || 0));
  }

  function overlaid(runs, names, metric, axis, smooth) {
    return runs.map((run, n) => {
      const xs = places(run, axis);
      const there = (run.metrics[metric] || []).map((value, i) => (value === null || value === undefined ? -1 : i)).filter((i) => i >= 0);
      return { name: names[n], xs: there.map((i) => xs[i]), ys: there.map((i) => run.metrics[metric][i]), smooth };
    });
  }

  function SamePrompts({ runs, names, pair }) {
    const shared = Object.keys(runs[pair[0]].evaluations).filter((when) => when in runs[pair[1]].evaluations);
    const [when, setWhen] = useState(shared[shared.length - 1]);
    const left = V.useAnswer(when && `${pair[0]}/evaluation/${when}`), right = V.useAnswer(when && `${pair[1]}/evaluation/${when}`);
    const pairs = useMemo(() => (left.found && right.found ? V.pairs(left.found, right.found) : []), [left.found, right.found]);
    const steps = runs[pair[0]].steps.filter((step) => runs[pair[1]].steps.includes(step));
    return html`<section><h2>The same prompt in both</h2>
      ${shared.length ? html`<div class="tools"><label>evaluation <select value=${when} onChange=${(e) => setWhen(e.target.value)}>${shared.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label></div>
        ${left.found && right.found ? html`<${V.PairTable} pairs=${pairs} names=${[names[pair[0]], names[pair[1]]]} number=${pair} wheres=${[when, when]} />` : html`<${V.Waiting} state=${left.error ? left : right} />`}` : html`<p class="faint">No evaluation was made at the same moment of both.</p>`}
      ${steps.length ? html`<${StepPrompts} pair=${pair} names=${names} steps=${steps} />` : null}</section>`;
  }

  function StepPrompts({ pair, names, steps }) {
    const [step, setStep] = useState(steps[steps.length - 1]);
    const left = V.useAnswer(`${pair[0]}/groups/${step}`), right = V.useAnswer(`${pair[1]}/groups/${step}`);
    const id = (group) => group.responses[0].prompt_id;
    const shared = left.found && right.found ? left.found.groups.map((one) => [one, right.found.groups.find((other) => id(other) === id(one))]).filter(([, other]) => other) : [];
    return html`<h3>In training</h3><div class="tools"><label>step <select value=${step} onChange=${(e) => setStep(Number(e.target.value))}>${steps.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>
      <span class="faint">${shared.length} prompts are in both</span></div>
      ${left.error || right.error ? html`<${V.Waiting} state=${left.error ? left : right} />` : null}
      ${shared.length ? html`<div class="wide"><table class="rows"><thead><tr><th>prompt</th><th class="num">${names[pair[0]]}</th><th class="num">${names[pair[1]]}</th></tr></thead><tbody>${shared.map(([one, other]) => html`<tr key=${one.number}>
        <td class="clip">${one.question}</td><td class="num"><a href=${V.link(pair[0], "group", step, one.number)}>${V.number(one.mean)}</a></td><td class="num"><a href=${V.link(pair[1], "group", step, other.number)}>${V.number(other.mean)}</a></td></tr>`)}</tbody></table></div>` : null}`;
  }

  V.views.compare = function ({ runs, names, theme }) {
    const [axis, setAxis] = useState("step");
    const [smooth, setSmooth] = useState(1);
    const [wanted, setWanted] = useState("");
    const [right, setRight] = useState(1);
    const different = differences(runs);
    const usual = [...new Set([...runs.flatMap((run) => run.panels.flatMap((panel) => panel.names)), "evaluation/mean"])];
    const all = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => !["step", "time"].includes(name));
    const shown = wanted ? all.filter((name) => name.includes(wanted)).slice(0, 12) : usual.filter((name) => all.includes(name));
    return html`<h1>Compare ${names.join(" and ")}</h1>
      <section><h2>Settings that differ (${different.length})</h2>${different.length ? html`<div class="wide"><table><thead><tr><th>setting</th>${names.map((name, n) => html`<th key=${n}>${name}</th>`)}</tr></thead>
        <tbody>${different.map((name) => html`<tr key=${name}><td><code>${name}</code></td>${runs.map((run, n) => html`<td key=${n}>${V.text(run.config[name])}</td>`)}</tr>`)}</tbody></table></div>` : html`<p class="faint">None.</p>`}</section>
      <section><h2>Curves</h2><div class="tools"><label>over <select value=${axis} onChange=${(e) => setAxis(e.target.value)}>${Object.entries(AXES).map(([name, words]) => html`<option key=${name} value=${name}>${words}</option>`)}</select></label>
        <label>smooth over <select value=${smooth} onChange=${(e) => setSmooth(Number(e.target.value))}>${[1, 3, 5, 10, 30].map((n) => html`<option key=${n} value=${n}>${n === 1 ? "1 step" : n + " steps"}</option>`)}</select></label>
        <label>metrics <input type="search" placeholder="part of a name" value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label></div>
        <div class="grid">${shown.map((name) => html`<div class="panel" key=${name + axis}><h3>${name}</h3><${V.Chart} series=${overlaid(runs, names, name, axis, smooth)} sync=${"compare" + axis} theme=${theme} /></div>`)}</div></section>
      ${runs.length > 2 ? html`<label>${names[0]} beside <select value=${right} onChange=${(e) => setRight(Number(e.target.value))}>${names.slice(1).map((name, n) => html`<option key=${n} value=${n + 1}>${name}</option>`)}</select></label>` : null}
      <${SamePrompts} key=${right} runs=${runs} names=${names} pair=${[0, right]} />`;
  };
})();
