// The frame of the page: which run and view, keys, theme, and asking whether a run went on.
(function () {
  "use strict";
  const { html, render, useState, useEffect, Component } = window.htmPreact;
  const V = window.viewer;
  const TABS = { overview: "Overview", groups: "Groups", evaluation: "Evaluation" };
  const KEYS = [["j / k", "next and previous group or response; in a list the next and previous row"], ["l / h", "next and previous saved step"], ["1 – 9", "colouring of tokens"], ["← / →", "token by token"],
    ["/", "to the filter"], ["Enter", "open what has the focus"], ["o, g, e, c", "overview, groups, evaluation, compare"], ["t", "light or dark"], ["?", "this list"], ["Esc", "close, or leave the filter"]];
  const POLL = 2000;

  V.isTyping = (event) => event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);

  function useHash() {
    const [parts, set] = useState(V.parts());
    useEffect(() => {
      const change = () => { set(V.parts()); window.scrollTo(0, 0); };
      addEventListener("hashchange", change);
      return () => removeEventListener("hashchange", change);
    }, []);
    return parts;
  }

  // The chosen theme, else that of the system; it is kept where the browser lets a page keep something.
  function useTheme() {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
    const [theme, set] = useState(stored() || (system.matches ? "dark" : "light"));
    if (document.documentElement.dataset.theme !== theme) document.documentElement.dataset.theme = theme;
    const turn = () => set((old) => {
      const chosen = old === "dark" ? "light" : "dark";
      try { localStorage.setItem("theme", chosen); } catch { /* a page from a file may not keep anything */ }
      return chosen;
    });
    return [theme, turn];
  }

  // A number that grows whenever the run has gone on. Answers from before are forgotten.
  function useVersion(number) {
    const [state, set] = useState({ version: 0, isLive: false });
    useEffect(() => {
      if (V.isFile) return undefined;
      let last = null, timer = null, isCurrent = true;
      const look = async () => {
        try {
          const { status, ...now } = await V.ask(`${number}/pulse`);  // what it does now changes all the time, and nothing else with it
          const told = JSON.stringify(now);
          if (last !== null && told !== last) V.forget();
          if (isCurrent) set((old) => ({ version: old.version + (last !== null && told !== last ? 1 : 0), isLive: !now.finished, status }));
          last = told;
        } catch (error) {
          if (isCurrent) set((old) => ({ ...old, isLive: false, problem: error.message }));
        }
        if (isCurrent) timer = setTimeout(look, POLL);
      };
      look();
      return () => { isCurrent = false; clearTimeout(timer); };
    }, [number]);
    return state;
  }

  class Guard extends Component {
    componentDidCatch(error) { this.setState({ error }); }
    componentDidUpdate(before) { if (before.at !== this.props.at && this.state.error) this.setState({ error: null }); }
    render() { return this.state.error ? html`<p class="problem" role="alert">This view failed: ${String(this.state.error.message || this.state.error)}</p>` : this.props.children; }
  }

  const Keys = ({ close }) => html`<div class="shade" onClick=${close}><div class="dialog" role="dialog" aria-modal="true" aria-label="keys"><h2>Keys</h2>
    <table><tbody>${KEYS.map(([key, words]) => html`<tr key=${key}><td><kbd>${key}</kbd></td><td>${words}</td></tr>`)}</tbody></table><button onClick=${close}>close</button></div></div>`;

  function moveRow(by) {
    const rows = [...document.querySelectorAll("tr[data-row]")];
    const now = rows.findIndex((row) => row.contains(document.activeElement));
    const row = rows[Math.max(0, Math.min(rows.length - 1, now + by))];
    const target = row && row.querySelector("a, button");
    if (target) { target.focus(); target.scrollIntoView({ block: "nearest" }); }
  }

  function moveStep(overview, number, view, words, by) {
    const steps = overview.steps;
    const at = words[0] ? steps.indexOf(Number(words[0])) : steps.length - 1;
    const step = steps[at + by];
    if (step !== undefined && view !== "evaluation") V.go(number, "groups", step);
  }

  function useKeys({ shown, overview, number, view, words, names, turnTheme, showKeys }) {
    useEffect(() => {
      const go = { o: "overview", g: "groups", e: "evaluation" };
      const press = (event) => {
        if (event.key === "Escape") { showKeys(false); document.activeElement.blur(); }
        if (V.isTyping(event)) return;
        if ("jkhl".includes(event.key) && V.parts().join("/") !== shown.join("/")) {  // meant for a view that is not drawn yet
          setTimeout(() => document.dispatchEvent(new KeyboardEvent("keydown", { key: event.key })), 20);
          return;
        }
        const link = document.querySelector(`a[data-key="${event.key === "j" ? "j" : "k"}"]`);
        if (event.key === "/") { const field = document.getElementById("search"); if (field) { event.preventDefault(); field.focus(); } }
        else if (event.key === "?") showKeys(true);
        else if (event.key === "t") turnTheme();
        else if (event.key in go) V.go(number, go[event.key]);
        else if (event.key === "c" && names.length > 1) V.go("compare");
        else if (event.key === "j" || event.key === "k") link ? link.click() : moveRow(event.key === "j" ? 1 : -1);
        else if ((event.key === "l" || event.key === "h") && overview) moveStep(overview, number, view, words, event.key === "l" ? 1 : -1);
      };
      document.addEventListener("keydown", press);
      return () => document.removeEventListener("keydown", press);
    });
  }

  function useOverviews(count, version) {
    const [state, set] = useState({});
    useEffect(() => {
      if (!count) return;
      Promise.all([...Array(count).keys()].map((n) => V.ask(`${n}/overview`))).then((found) => set({ found }), (error) => set({ error: error.message }));
    }, [count, version]);
    return state;
  }

  function App() {
    const shown = useHash(), [first = "0", view = "overview", ...words] = shown;
    const [theme, turnTheme] = useTheme();
    const [hasKeys, showKeys] = useState(false);
    const isCompare = first === "compare";
    const number = isCompare ? 0 : Number(first) || 0;
    const { version, isLive, status, problem } = useVersion(number);
    const runs = V.useAnswer("runs");
    const names = runs.found || [];
    const state = useOverviews(names.length, version);
    const leftOut = V.useAnswer(V.isFile ? "left_out" : null);
    const overview = state.found && state.found[number];
    useKeys({ shown, overview, number, view: isCompare ? "compare" : view, words, names, turnTheme, showKeys });
    const View = isCompare ? V.views.compare : V.views[view] || V.views.overview;
    const told = leftOut.found && leftOut.found[number];
    const tab = { group: "groups", tokens: "groups" }[view] || view;
    return html`<header class="top"><span class="runs">${names.length > 1 ? html`<select aria-label="run" value=${number} onChange=${(e) => V.go(e.target.value, tab)}>${names.map((name, n) => html`<option key=${n} value=${n}>${name}</option>`)}</select>` : html`<b>${names[0]}</b>`}
        ${isLive ? html`<span class="live" title="this page follows the run">● follows the run${status ? ` · ${status}` : null}</span>` : null}</span>
      <nav>${Object.entries(TABS).map(([name, words_]) => html`<a key=${name} href=${V.link(number, name)} aria-current=${!isCompare && tab === name ? "page" : null}>${words_}</a>`)}
        ${names.length > 1 ? html`<a href="#/compare" aria-current=${isCompare ? "page" : null}>Compare</a>` : null}</nav>
      <span><button onClick=${turnTheme} title="light or dark (t)" aria-label="light or dark">◐</button> <button onClick=${() => showKeys(true)} aria-label="keys">?</button></span></header>
      ${told ? html`<p class="note">This file leaves out ${told}.</p>` : null}${problem ? html`<p class="problem" role="alert">${problem}</p>` : null}
      <main><${Guard} at=${location.hash}>${runs.error || state.error ? html`<${V.Waiting} state=${runs.error ? runs : state} />` : state.found && !overview ? html`<p class="problem" role="alert">There is no run ${number}; their numbers are 0 to ${names.length - 1}.</p>` : overview ? html`<${View} key=${isCompare ? "compare" : number + view} overview=${overview} runs=${state.found} names=${names} number=${number} words=${words} version=${version} theme=${theme} />` : html`<p class="faint">Loading …</p>`}<//></main>
      ${hasKeys ? html`<${Keys} close=${() => showKeys(false)} />` : null}`;
  }

  render(html`<${App} />`, document.getElementById("app"));
})();
