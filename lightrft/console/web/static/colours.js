// How tokens are coloured: a class for each value. Blue is above the middle, orange below it; colour-blind people can tell them
// apart, and a solid or dotted line under the token says the same without colour.
(function () {
  "use strict";
  const V = window.viewer;
  const LEVELS = 4;

  const level = (share) => Math.min(LEVELS, Math.ceil(LEVELS * Math.min(1, Math.abs(share)) - 0.25));
  const around = (share) => (level(share) <= 0 ? "" : (share > 0 ? "p" : "n") + level(share));
  const largest = (values) => values.reduce((most, v) => (v === null ? most : Math.max(most, Math.abs(v))), 0) || 1;

  // Surprise: 50 %, 10 %, 1 %, 0.1 %.
  const surprise = () => (value) => (value > Math.log(0.5) ? "" : value > Math.log(0.1) ? "n1" : value > Math.log(0.01) ? "n2" : value > Math.log(0.001) ? "n3" : "n4");
  const signed = (values) => { const most = largest(values); return (value) => around(value / most); };
  const ratio = () => (value) => around(Math.log(Math.max(value, 1e-9)) / Math.log(2));

  // Column -> its words, its scale, and what the colours mean. Columns that are not listed are shown around 0.
  V.COLUMNS = {
    behavior: ["log-prob at sampling", surprise, "orange: the token was unlikely when it was sampled (from below 50 % to below 0.1 %)"],
    probability: ["probability at sampling", (values) => (value) => surprise(values)(Math.log(Math.max(value, 1e-30))), "orange: the token was unlikely when it was sampled"],
    entropy: ["entropy", signed, "blue: the model was unsure what comes here"],
    advantages: ["advantage", signed, "blue: made more likely; orange: made less likely"],
    ratio: ["ratio new / old", ratio, "blue: already more likely than when sampled; orange: less likely; full colour at a factor of 2"],
    difference: ["trainer less engine", signed, "blue: the trainer finds the token likelier than the engine did; orange: less likely"],
    ref_difference: ["policy less reference (KL)", signed, "blue: likelier than under the reference; orange: less likely"],
    values: ["value of the critic", signed, "blue: the critic expects a return above 0; orange: below 0"],
    cost_values: ["value of the cost", signed, "blue: the critic expects a cost above 0; orange: below 0"],
    weight: ["weight in the loss", signed, "blue: the larger, the more the token counts in the loss"],
    rewards: ["reward of the token", signed, "blue: above 0; orange: below 0"],
    returns: ["return", signed, "blue: above 0; orange: below 0"],
    old: ["log-prob before the step", surprise, "orange: unlikely under the weights before the step"],
    new: ["log-prob at the last update", surprise, "orange: unlikely under the weights of the last update"],
    ref: ["log-prob of the reference", surprise, "orange: unlikely for the reference"],
    teacher: ["log-prob of the teacher", surprise, "orange: unlikely for the teacher"],
  };
  const NOT_SHOWN = ["ids", "pieces", "mask"];

  // The columns with those that follow from them.
  V.withDerived = function (columns) {
    const found = { ...columns };
    const policy = columns.old || columns.new || columns.behavior;
    if (columns.behavior) found.probability = columns.behavior.map((v) => (v === null ? null : Math.exp(v)));
    if (columns.ref && policy) found.ref_difference = policy.map((v, n) => (v === null || columns.ref[n] === null ? null : v - columns.ref[n]));
    return found;
  };
  V.colourings = (columns) => {
    const listed = Object.keys(V.COLUMNS).filter((name) => name in columns);
    return [...listed, ...Object.keys(columns).filter((name) => !(name in V.COLUMNS) && !NOT_SHOWN.includes(name))];
  };
  V.describe = (name) => V.COLUMNS[name] || [V.words(name), signed, "blue: above 0; orange: below 0"];

  // A class for each token: "" plain, p1-p4, n1-n4, "none" where the value is not known.
  V.classes = function (columns, name) {
    const values = columns[name];
    const scale = V.describe(name)[1](values);
    return values.map((value, n) => (value === null ? "none" : scale(value)) + (columns.mask && !columns.mask[n] ? " masked" : ""));
  };
})();
