// Curves by uPlot, with a legend of our own: names of metrics are text, never markup.
(function () {
  "use strict";
  const { html, useEffect, useRef } = window.htmPreact;
  const V = window.viewer;
  // Colours of Okabe and Ito, and a dash besides, so that no two lines differ by colour alone.
  const LINES = [["--blue", []], ["--orange", [6, 3]], ["--green", [2, 2]], ["--purple", [8, 3, 2, 3]], ["--sky", [12, 4]], ["--red", [4, 4]]];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  V.smooth = function (values, window_) {
    return values.map((value, n) => (value === null ? null : V.mean(values.slice(Math.max(0, n + 1 - window_), n + 1))));
  };

  // Lowest and highest of an axis: some room around the values, and a span of 1 where all are 0 (uPlot would take 100).
  V.span = (_, low, high) => (low === 0 && high === 0 ? [0, 1] : low === null ? [0, 1] : window.uPlot.rangeNum(low, high, 0.1, true));

  // Series of {name, xs, ys, points} over one axis.
  function joined(series) {
    const xs = [...new Set(series.flatMap((one) => one.xs))].sort((a, b) => a - b);
    const place = new Map(xs.map((x, n) => [x, n]));
    const columns = series.map((one) => {
      const ys = new Array(xs.length).fill(null);
      one.xs.forEach((x, n) => { ys[place.get(x)] = one.ys[n]; });
      return ys;
    });
    return [xs, ...columns];
  }

  // A chart. `onPick(x)` is called with the x under a click; `onPoint(x)` while the pointer moves; `mark` draws a line at an x.
  V.Chart = function ({ series, isLog = false, height = 180, sync = "", onPick, onPoint, mark = null, theme = "", label = "" }) {
    const place = useRef(null);
    const plot = useRef(null);
    const shown = series.filter((one) => one.xs.length);
    const key = JSON.stringify([shown.map((one) => [one.name, one.xs.length, one.ys[one.ys.length - 1], one.smooth]), isLog, theme]);
    useEffect(() => {
      if (!shown.length) return undefined;
      const ink = css("--faint"), grid = css("--line");
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
      const positive = (ys) => ys.map((y) => (isLog && y !== null && y <= 0 ? null : y));
      const data = joined(shown.map((one) => ({ ...one, ys: positive(V.smooth(one.ys, one.smooth || 1)) })));
      const options = {
        width: Math.max(120, place.current.clientWidth), height, legend: { show: false },
        cursor: { sync: sync ? { key: sync } : undefined, drag: { x: true, y: false }, points: { size: 6 } },
        scales: { x: { time: false }, y: isLog ? { distr: 3 } : { range: V.span } },
        axes: [{ ...axis, size: 28 }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : V.number(tick))) }],
        series: [{}, ...shown.map((one, n) => ({
          stroke: css(LINES[n % LINES.length][0]), dash: one.points ? [2, 4] : LINES[n % LINES.length][1], width: one.points ? 1 : 1.6, spanGaps: true,
          points: { show: one.points || one.xs.length === 1, size: 7, fill: css(LINES[n % LINES.length][0]) },
        }))],
        hooks: {
          setCursor: [(u) => onPoint && u.cursor.idx !== null && u.cursor.idx !== undefined && onPoint(u.data[0][u.cursor.idx])],
          draw: [(u) => {
            const at = plot.mark;
            if (at === null || at === undefined) return;
            const x = u.valToPos(at, "x", true);
            u.ctx.save();
            u.ctx.strokeStyle = css("--ink");
            u.ctx.beginPath();
            u.ctx.moveTo(x, u.bbox.top);
            u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
            u.ctx.stroke();
            u.ctx.restore();
          }],
        },
      };
      const drawn = new window.uPlot(options, data, place.current);
      plot.current = drawn;
      const pick = () => onPick && drawn.cursor.idx !== null && onPick(drawn.data[0][drawn.cursor.idx]);
      drawn.over.addEventListener("click", pick);
      const watch = new ResizeObserver(() => drawn.setSize({ width: Math.max(120, place.current.clientWidth), height }));
      watch.observe(place.current);
      return () => { watch.disconnect(); drawn.destroy(); plot.current = null; };
    }, [key]);
    useEffect(() => {
      plot.mark = mark;
      if (plot.current) plot.current.redraw(false);
    }, [mark, key]);
    if (!shown.length) return html`<p class="faint">Nothing was logged.</p>`;
    return html`<figure class="chart" role="img" aria-label=${label || shown.map((one) => one.name).join(", ")}>
      ${shown.length > 1 || shown[0].legend ? html`<figcaption>${shown.map((one, n) => html`<span class="key" key=${n}>
        <svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" style=${{ stroke: `var(${LINES[n % LINES.length][0]})`, strokeWidth: 2, strokeDasharray: one.points ? "" : LINES[n % LINES.length][1].join(" ") }} />
        ${one.points ? html`<circle cx="13" cy="4" r="3.5" style=${{ fill: `var(${LINES[n % LINES.length][0]})` }} />` : null}</svg>${one.name}</span>`)}</figcaption>` : null}
      <div ref=${place}></div></figure>`;
  };

  // Steps and values of a metric of an overview.
  V.series = function (overview, name, extra = {}) {
    const values = overview.metrics[name] || [];
    const places = values.map((value, n) => (value === null || value === undefined ? -1 : n)).filter((n) => n >= 0);
    return { name, xs: places.map((n) => overview.metrics.step[n]), ys: places.map((n) => values[n]), ...extra };
  };
})();
