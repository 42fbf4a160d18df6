// What two texts differ in, word by word: the fewest words that must go and come (Myers 1986, An O(ND) difference algorithm).
(function () {
  "use strict";
  const { html, useMemo } = window.htmPreact;
  const V = window.viewer;
  const MOST_CHANGES = 2000;

  const words = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu) || [];

  // For each number of changes, how far each diagonal comes in `a`; null beyond MOST_CHANGES.
  function reach(a, b) {
    const rounds = [];
    let last = new Int32Array([0]);
    for (let changes = 0; changes <= Math.min(a.length + b.length, MOST_CHANGES); changes++) {
      const now = new Int32Array(2 * changes + 1);
      for (let k = -changes; k <= changes; k += 2) {
        const from = (diagonal) => last[diagonal + changes - 1];
        let x = changes === 0 ? 0 : k === -changes || (k !== changes && from(k - 1) < from(k + 1)) ? from(k + 1) : from(k - 1) + 1;
        while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
        now[k + changes] = x;
        if (x >= a.length && x - k >= b.length) { rounds.push(now); return rounds; }
      }
      rounds.push(now);
      last = now;
    }
    return null;
  }

  // From the end back to the beginning: [same | gone | new, word].
  function steps(a, b) {
    const rounds = reach(a, b);
    if (rounds === null) return [...a.map((word) => ["gone", word]), ...b.map((word) => ["new", word])];
    const found = [];
    let x = a.length, y = b.length;
    for (let changes = rounds.length - 1; changes > 0; changes--) {
      const k = x - y, last = rounds[changes - 1], from = (diagonal) => last[diagonal + changes - 1];
      const isNew = k === -changes || (k !== changes && from(k - 1) < from(k + 1));
      const diagonal = isNew ? k + 1 : k - 1, begin = from(diagonal);
      while (x > begin + (isNew ? 0 : 1)) { found.push(["same", a[--x]]); y--; }
      if (isNew) found.push(["new", b[--y]]);
      else found.push(["gone", a[--x]]);
    }
    while (x > 0) found.push(["same", a[--x]]);
    return found.reverse();
  }

  // [[kind, text], ...]: `same` and `gone` together are `left`, `same` and `new` together are `right`.
  V.wordDiff = function (left, right) {
    const a = words(left), b = words(right);
    let start = 0, end = 0;
    while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
    while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const all = [["same", a.slice(0, start).join("")], ...steps(a.slice(start, a.length - end), b.slice(start, b.length - end)), ["same", a.slice(a.length - end).join("")]];
    const joined = [];
    for (const [kind, text] of all) {
      if (joined.length && joined[joined.length - 1][0] === kind) joined[joined.length - 1][1] += text;
      else if (text) joined.push([kind, text]);
    }
    return joined;
  };

  // Struck out: only in `left`. Underlined: only in `right`.
  V.Diff = function ({ left, right }) {
    const found = useMemo(() => V.wordDiff(left, right), [left, right]);
    return html`<div class="text diff">${found.map(([kind, text], n) => (kind === "gone" ? html`<del key=${n}>${text}</del>` : kind === "new" ? html`<ins key=${n}>${text}</ins>` : html`<span key=${n}>${text}</span>`))}</div>`;
  };
})();
