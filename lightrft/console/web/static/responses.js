// Groups of a step, and the responses of a group side by side.
(function () {
  "use strict";
  const { html, useState, useEffect, useMemo } = window.htmPreact;
  const V = window.viewer;
  const SORTS = {
    number: ["group number", (g) => g.number],
    spread: ["largest spread of rewards", (g) => -(Math.max(...rewards(g)) - Math.min(...rewards(g)))],
    worst: ["lowest mean reward", (g) => g.mean ?? Infinity],
    best: ["highest mean reward", (g) => -(g.mean ?? -Infinity)],
    longest: ["longest responses", (g) => -V.mean(g.responses.map((r) => r.length))],
  };
  const rewards = (group) => group.responses.map((row) => row.reward ?? 0);

  // Rewards of siblings: height and number of a bar say the same as its colour.
  function Strip({ group }) {
    const low = Math.min(0, ...rewards(group)), high = Math.max(1, ...rewards(group));
    return html`<span class="strip" role="img" aria-label=${"rewards " + group.responses.map((row) => V.number(row.reward)).join(", ")}>
      ${group.responses.map((row, n) => html`<i key=${n} title=${"reward " + V.number(row.reward)} class=${row.reward === null ? "unknown" : ""}
        style=${{ height: 2 + 14 * ((row.reward ?? low) - low) / (high - low) + "px" }}></i>`)}</span>`;
  }

  V.Marks = ({ statuses }) => html`${(statuses || []).filter((one) => one !== "trained").map((one) => html`<span class="mark" key=${one}>${V.words(one)}</span>`)}`;

  // Groups of one step, or of all saved steps, which are read one after another.
  function useGroups(number, steps, isAll, version) {
    const [state, set] = useState({ groups: [], left: steps.length });
    const key = steps.join() + isAll + version;
    useEffect(() => {
      let isCurrent = true;
      (async () => {
        const found = [];
        for (const [n, step] of steps.entries()) {
          try {
            const told = await V.ask(`${number}/groups/${step}`);
            found.push(...told.groups.map((group) => ({ ...group, step })));
          } catch (error) {
            if (!isAll) { if (isCurrent) set({ key, groups: [], left: 0, error: error.message }); return; }
          }
          if (!isCurrent) return;
          set({ key, groups: [...found], left: steps.length - n - 1 });
        }
      })();
      return () => { isCurrent = false; };
    }, [number, key]);
    return state.key === key ? state : { groups: [], left: steps.length };
  }

  V.StepPicker = ({ overview, number, view, step }) => html`<label>step <select value=${step} onChange=${(e) => V.go(number, view, e.target.value)}>
    ${overview.steps.map((one) => html`<option key=${one} value=${one}>${one}${V.has(`${number}/groups/${one}`) ? "" : " (left out)"}</option>`)}</select></label>`;

  V.views.groups = function ({ overview, number, words, version }) {
    const step = words[0] ? Number(words[0]) : overview.steps[overview.steps.length - 1];
    const [wanted, setWanted] = useState("");
    const [sort, setSort] = useState("number");
    const [isAll, setAll] = useState(false);
    const there = overview.steps.filter((one) => V.has(`${number}/groups/${one}`));
    const state = useGroups(number, isAll ? there : step === undefined ? [] : [step], isAll, version);
    const meets = useMemo(() => V.filter(wanted), [wanted]);
    if (step === undefined) return html`<h1>Groups</h1><p>No responses are saved. Set ${overview.learns_from_given ? "log.held_out_prompts" : "log.trajectories_every_steps"} above 0 in the next run.</p>`;
    const isWrong = typeof meets === "string";
    const kept = isWrong ? [] : state.groups.map((group) => ({ group, hits: group.responses.filter((row) => meets(group, row)) })).filter((one) => one.hits.length);
    kept.sort((a, b) => SORTS[sort][1](a.group) - SORTS[sort][1](b.group) || a.group.step - b.group.step);
    const shown = kept.slice(0, 500);
    return html`<h1>Groups ${isAll ? "of all saved steps" : "of step " + step}</h1><div class="tools">
      <${V.StepPicker} overview=${overview} number=${number} view="groups" step=${step} />
      <label><input type="checkbox" checked=${isAll} onChange=${(e) => setAll(e.target.checked)} /> all saved steps</label>
      <label>sort by <select value=${sort} onChange=${(e) => setSort(e.target.value)}>${Object.entries(SORTS).map(([name, [words_]]) => html`<option key=${name} value=${name}>${words_}</option>`)}</select></label>
      <label class="grow">filter <input id="search" type="search" placeholder=${V.FILTER_HELP} title=${V.FILTER_HELP} value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label></div>
      ${isWrong ? html`<p class="problem" role="alert">${meets}</p>` : null}${state.error ? html`<${V.Waiting} state=${state} />` : null}
      <p class="faint" aria-live="polite">${kept.length} groups, ${kept.reduce((n, one) => n + one.hits.length, 0)} responses${state.left ? `; ${state.left} steps still to read` : ""}${kept.length > shown.length ? `; the first ${shown.length} are shown` : ""}</p>
      <div class="wide"><table class="rows"><thead><tr>${isAll ? html`<th class="num">step</th>` : null}<th class="num">group</th><th>task</th><th>prompt</th><th>reference</th><th class="num">mean</th><th>rewards</th><th>use</th></tr></thead>
      <tbody>${shown.map(({ group }) => html`<tr key=${group.step + "/" + group.number} data-row onClick=${() => V.go(number, "group", group.step, group.number)}>
        ${isAll ? html`<td class="num">${group.step}</td>` : null}<td class="num"><a href=${V.link(number, "group", group.step, group.number)}>${group.number}</a></td><td>${group.source}</td>
        <td class="clip">${group.question}</td><td class="clip short">${V.text(group.target)}</td><td class="num">${V.number(group.mean)}</td><td><${Strip} group=${group} /></td><td><${V.Marks} statuses=${group.statuses} /></td></tr>`)}</tbody></table></div>`;
  };

  function Thinking({ text, prefix }) {
    const [, thought, rest] = /^\s*<think>([\s\S]*?)<\/think>([\s\S]*)$/.exec(text) || [];
    if (thought === undefined) return html`<${V.Text} text=${text} prefix=${prefix} />`;
    return html`<details><summary>thinking, ${thought.length} characters</summary><${V.Text} text=${thought} /></details><${V.Text} text=${rest} />`;
  }

  // Messages with their roles; calls of tools and their replies are told apart by word and by frame.
  V.Conversation = ({ messages }) => html`<div class="conversation">${messages.map((one, n) => html`<div key=${n} class=${"turn " + (["user", "assistant", "system", "tool"].includes(one.role) ? one.role : "other")}>
    <b class="role">${one.role}${one.name ? " " + V.text(one.name) : ""}</b>
    ${one.reasoning_content ? html`<details><summary>thinking</summary><${V.Text} text=${V.text(one.reasoning_content)} /></details>` : null}
    <${Thinking} text=${one.text} prefix=${0} />
    ${[].concat(one.tool_calls || []).map((call, i) => html`<div class="call" key=${i}><b>calls</b> <code>${V.text((call.function || call).name)}</code><div class="text">${V.text((call.function || call).arguments)}</div></div>`)}</div>`)}</div>`;

  V.Pictures = function ({ path }) {
    const state = V.useAnswer(path);
    if (!state.found) return html`<${V.Waiting} state=${state} />`;
    const all = [...state.found.drawn, ...state.found.asked];
    return html`<div class="pictures">${all.map((one, n) => /^data:image\/(png|webp);base64,/.test(one.url || "") ? html`<img key=${n} src=${one.url} alt=${one.name} />`
      : /^data:audio\/ogg;base64,/.test(one.url || "") ? html`<figure key=${n}><audio controls src=${one.url} aria-label=${one.name}></audio><figcaption class="faint">${one.name}</figcaption></figure>` : html`<p key=${n} class="faint">[${one.name}: ${one.missing}]</p>`)}</div>`;
  };

  V.ResponseCard = function ({ row, number, where, prefix, against, hasLink = true }) {
    const parts = Object.entries(row.parts || {});
    return html`<article class="response"><header><b>reward ${V.number(row.reward)}</b>
      ${row.advantage === null || row.advantage === undefined ? null : html`<span title="advantage of its first token">${row.advantage > 0 ? "▲" : row.advantage < 0 ? "▼" : "="} ${V.number(row.advantage)}</span>`}
      <span class=${V.isTruncated(row) ? "mark" : "faint"}>${row.length} tokens, ${V.ended(row)}</span><${V.Marks} statuses=${row.statuses} /></header>
      ${row.failed ? html`<p class="problem">no reward: ${V.text(row.failed)}</p>` : null}
      ${row.has_pictures ? html`<${V.Pictures} path=${`${number}/pictures/${where}/${row.place}`} />` : null}
      ${typeof against === "string" ? html`<${V.Diff} left=${against} right=${row.response || ""} />` : row.said ? html`<${V.Conversation} messages=${row.said} />` : html`<${Thinking} text=${row.response || ""} prefix=${prefix} />`}
      <footer>${parts.map(([name, value]) => html`<span key=${name}>${name} <b>${V.number(value)}</b></span>`)}
        ${row.weight_version === undefined ? null : html`<span class="faint">weights v${row.weight_version}</span>`}
        ${hasLink && row.has_tokens ? html`<a href=${V.link(number, "tokens", where, row.place)}>tokens</a>` : null}</footer></article>`;
  };

  V.views.group = function ({ overview, number, words, version }) {
    const [step, wanted] = words.map(Number);
    const [base, setBase] = useState(null);
    const state = V.useAnswer(`${number}/groups/${step}`, version);
    if (!state.found) return html`<h1>Group ${words[1]} of step ${words[0]}</h1><${V.Waiting} state=${state} />`;
    const groups = state.found.groups;
    const at = groups.findIndex((group) => group.number === wanted);
    if (at < 0) return html`<p class="problem">There is no group ${words[1]} in step ${step}.</p>`;
    const group = groups[at];
    const ranked = [...group.responses].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
    const prefix = V.commonPrefix(ranked.map((row) => row.response || ""));
    const against = ranked.find((row) => row.place === base);
    const to = (n) => groups[n] && V.link(number, "group", step, groups[n].number);
    return html`<nav class="around"><a href=${V.link(number, "groups", step)}>groups of step ${step}</a>
        ${to(at - 1) ? html`<a data-key="k" href=${to(at - 1)}>← previous <kbd>k</kbd></a>` : null}${to(at + 1) ? html`<a data-key="j" href=${to(at + 1)}>next <kbd>j</kbd> →</a>` : null}</nav>
      <h1>Group ${group.number} of step ${step} <span class="faint">${group.source}</span></h1>
      <div class="ask"><section><h2>Prompt</h2>${group.messages.length > 1 ? html`<${V.Conversation} messages=${group.messages} />` : html`<${V.Text} text=${group.question} />`}</section>
      ${V.text(group.target) === "" ? null : html`<section><h2>Reference</h2><${V.Text} text=${V.text(group.target)} /></section>`}</div>
      <h2>${ranked.length} responses, best first <span class="faint">mean ${V.number(group.mean)}${prefix > 0 ? "; what all begin with is grey" : ""}</span></h2>
      ${ranked.length > 1 ? html`<div class="tools"><label>word by word against <select id="against" value=${against ? base : ""} onChange=${(e) => setBase(e.target.value === "" ? null : Number(e.target.value))}><option value="">none</option>
        ${ranked.map((row, n) => html`<option key=${row.place} value=${row.place}>response ${n + 1}, reward ${V.number(row.reward)}</option>`)}</select></label>${against ? html`<span class="faint"><del>only there</del> <ins>only here</ins></span>` : null}</div>` : null}
      <div class="siblings">${ranked.map((row) => html`<${V.ResponseCard} key=${row.place} row=${row} number=${number} where=${step} prefix=${prefix} against=${against && row !== against ? against.response || "" : undefined} />`)}</div>`;
  };
})();
