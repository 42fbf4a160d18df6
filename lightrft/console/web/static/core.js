// What every view uses: answers of the server or of this file, words and numbers, and the address of a view.
(function () {
  "use strict";
  const { html, useState, useEffect } = window.htmPreact;
  const V = (window.viewer = { html, views: {} });

  // Answers. An exported file holds them packed; a server is asked, and asked again when the run has gone on.
  const element = document.getElementById("saved");
  const saved = element ? JSON.parse(element.textContent) : null;
  V.isFile = saved !== null;
  const known = new Map();

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  async function fromFile(path) {
    if (saved[path]) return unpack(saved[path]);
    const [, step, place] = /^(\d+\/tokens\/\d+)\/(\d+)$/.exec(path) || [];
    const found = step && saved[step] ? await V.ask(step) : {};
    if (place in found) return found[place];
    throw new Error("This is left out of the file. Export with a larger --export-mib, or look at the run with --web.");
  }

  async function fromServer(path) {
    let reply;
    try {
      reply = await fetch("api/" + path.split("/").map(encodeURIComponent).join("/"));
    } catch {
      throw new Error("The server does not answer. Start lightrft view RUN --web again.");
    }
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    return found;
  }

  V.ask = function (path) {
    if (path.includes("/pulse")) return fromServer(path);
    if (!known.has(path)) {
      const answer = (V.isFile ? fromFile : fromServer)(path);
      known.set(path, answer);
      answer.catch(() => known.delete(path));
    }
    return known.get(path);
  };
  V.forget = () => known.clear();
  V.has = (path) => !V.isFile || path in saved;

  // {found, error} of a path; the last answer stays until the next one is there. `version` asks anew.
  V.useAnswer = function (path, version = 0) {
    const [state, set] = useState({ path: null });
    useEffect(() => {
      if (!path) return undefined;
      let isCurrent = true;
      V.ask(path).then(
        (found) => isCurrent && set({ path, found }),
        (error) => isCurrent && set({ path, error: error.message }),
      );
      return () => { isCurrent = false; };
    }, [path, version]);
    return state.path === path ? state : { path };
  };

  V.Waiting = ({ state }) =>
    state.error ? html`<p class="problem" role="alert">${state.error}</p>` : html`<p class="faint">Loading …</p>`;

  // Addresses: #/RUN/view/word/word
  V.parts = () => location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  V.link = (...parts) => "#/" + parts.map((part) => encodeURIComponent(part)).join("/");
  V.go = (...parts) => { location.hash = V.link(...parts); };

  // Words and numbers.
  V.number = (value, digits = 3) =>
    value === null || value === undefined ? "–"
      : Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value)
        : Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(digits - 1)
          : Number(value.toPrecision(digits)).toString();
  V.percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");
  V.text = (value) => (typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value));
  V.words = (name) => String(name).replaceAll("_", " ");
  V.ENDS = { stop: "complete", turns: "stopped at the turn limit" };
  V.isTruncated = (row) => !(row.finish in V.ENDS);
  V.ended = (row) => V.ENDS[row.finish] || "truncated";
  V.mean = (values) => {
    const there = values.filter((v) => v !== null && v !== undefined);
    return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
  };

  // What several texts have in common at their start, up to the end of a word.
  V.commonPrefix = function (texts) {
    if (texts.length < 2) return 0;
    let length = Math.min(...texts.map((t) => t.length));
    for (const text of texts) {
      let n = 0;
      while (n < length && text[n] === texts[0][n]) n++;
      length = n;
    }
    while (length > 0 && /\w/.test(texts[0][length - 1]) && texts.some((t) => /\w/.test(t[length] || " "))) length--;
    return length;
  };

  V.Text = ({ text, prefix = 0 }) => html`<div class="text">${prefix > 0 ? html`<span class="common">${text.slice(0, prefix)}</span>` : null}${text.slice(prefix)}</div>`;

  // A filter such as: reward<0.2 & truncated & part.format=1 & "Oslo". Returns a function of a group and a response, or a sentence.
  const COMPARE = {
    "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
    "=": (a, b) => String(a) === String(b), "!=": (a, b) => String(a) !== String(b),
  };
  const FIELDS = ["reward", "length", "advantage", "weight_version", "finish", "place", "prompt_id", "group", "task"];
  V.FILTER_HELP = `reward<0.2 & truncated & part.NAME=1 & "text"; fields: ${FIELDS.join(", ")}`;

  function valueOf(name, group, row) {
    if (name.startsWith("part.")) return (row.parts || {})[name.slice(5)];
    if (name === "group") return group.number;
    return name === "task" ? group.source : row[name];
  }

  function term(text) {
    const [, name, sign, wanted] = /^([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.+)$/.exec(text) || [];
    if (name && !FIELDS.includes(name) && !name.startsWith("part.")) throw new Error(`no field ${name}; there are: ${FIELDS.join(", ")}, part.NAME`);
    if (name) {
      const value = Number.isNaN(Number(wanted)) ? wanted.replace(/^"|"$/g, "") : Number(wanted);
      return (group, row) => {
        const own = valueOf(name, group, row);
        return own !== null && own !== undefined && COMPARE[sign](own, value);
      };
    }
    if (text === "truncated") return (group, row) => V.isTruncated(row);
    const words = text.replace(/^"|"$/g, "").toLowerCase();
    return (group, row) =>
      (row.statuses || []).includes(words.replaceAll(" ", "_")) ||
      [row.response, group.question, V.text(group.target), ...(row.said || []).map((m) => m.text)].some((t) => (t || "").toLowerCase().includes(words));
  }

  V.filter = function (text) {
    try {
      const terms = text.split("&").map((t) => t.trim()).filter(Boolean).map(term);
      return (group, row) => terms.every((one) => one(group, row));
    } catch (error) {
      return error.message;
    }
  };
})();
