// Draws the report from the JSON of #data. Text from the data reaches the page as text only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const $ = (id) => document.getElementById(id);

  const node = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const number = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "–");
  const bytes = (value) => value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(2)} MB`;
  const significant = (value) => value === 0 ? "0" : value >= 1 ? String(Number(value.toFixed(2))) : String(Number(value.toPrecision(2)));
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const fill = (select, choices, chosen) => {
    for (const [value, text] of choices) select.append(node("option", text, {value}));
    if (chosen !== undefined) select.value = chosen;
  };

  // ---- head
  const name = data.model.path || "model";
  const title = `${name}: ${rows.length - 1} compressed ${rows.length === 2 ? "model" : "models"} beside the original`;
  $("title").textContent = title;
  document.title = title;
  const text = data.evaluation;
  $("summary").textContent = `On ${text.text}, ${rows[0].tokens} tokens scored in windows of ${text.ctx} (${text.protocol}); ` +
    `${data.model.arch}, ${data.model.layers} layers, ${(data.model.params / 1e6).toFixed(1)} M parameters.`;
  for (const warning of data.warnings) $("warnings").append(node("p", "Warning: " + warning, {class: "warning"}));
  $("footer").textContent = `Written by quern ${data.quern}, ${data.created}.`;

  // ---- scatter
  const measures = {
    kl_mean: {text: "KL to the original, nats a token", of: (r) => r.kl_mean, better: -1},
    ppl: {text: "perplexity", of: (r) => r.ppl, better: -1},
    top1: {text: "same top token, %", of: (r) => r.top1 === undefined ? undefined : 100 * r.top1, better: 1},
    speed: {text: "generated tokens a second", of: (r) => r.generated_tokens_per_second || undefined, better: 1},
    prompt: {text: "prompt tokens a second", of: (r) => r.prompt_tokens_per_second || undefined, better: 1},
    bytes: {text: "size, MB", of: (r) => r.bytes / 1e6, better: -1},
    bpw: {text: "bits a weight of the whole file", of: (r) => r.bpw, better: -1},
    linear: {text: "bits a weight of the layers' matrices", of: (r) => r.linear_bpw, better: -1},
  };
  const has = (key) => rows.some((r) => measures[key].of(r) !== undefined);
  const choices = (keys) => keys.filter(has).map((key) => [key, measures[key].text]);
  fill($("y-choice"), choices(["kl_mean", "ppl", "top1", "speed", "prompt"]));
  fill($("x-choice"), choices(["bytes", "bpw", "linear", "speed"]));

  const labels = {  // row numbers beside points
    id: "labels",
    afterDatasetsDraw(chart) {
      const {ctx} = chart;
      ctx.save();
      ctx.font = "12px system-ui, sans-serif";
      ctx.fillStyle = style("--text");
      chart.data.datasets.forEach((set, i) => set.data.forEach((point, j) => {
        if (point.row === undefined) return;
        const at = chart.getDatasetMeta(i).data[j];
        const right = at.x > chart.chartArea.right - 24;
        ctx.textAlign = right ? "right" : "left";
        ctx.fillText(String(point.row), at.x + (right ? -9 : 9), at.y + (right ? -8 : 4));
      }));
      ctx.restore();
    },
  };
  const beats = (a, b, x, y) => {  // no worse in both, better in one
    const dx = (a.x - b.x) * x.better, dy = (a.y - b.y) * y.better;
    return dx >= 0 && dy >= 0 && (dx > 0 || dy > 0);
  };
  const isRound = (v) => [1, 2, 5].some((d) => Math.abs(v / 10 ** Math.floor(Math.log10(v / d) + 1e-9) - d) < 1e-6 * d);
  const axis = (measure, logarithmic) => ({
    type: logarithmic ? "logarithmic" : "linear",
    title: {display: true, text: measure.text, color: style("--text")},
    ticks: {color: style("--quiet"), maxRotation: 0, callback: (v) => !logarithmic || isRound(v) ? significant(v) : null},
    grid: {color: style("--line")},
  });
  let scatter;
  const drawScatter = () => {
    const x = measures[$("x-choice").value], y = measures[$("y-choice").value];
    const logarithmic = $("log-choice").checked;
    const points = rows.map((r, i) => ({x: x.of(r), y: y.of(r), row: i}))
      .filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y) && (!logarithmic || p.y > 0));
    const best = points.filter((p) => !points.some((q) => beats(q, p, x, y))).sort((p, q) => p.x - q.x);
    const beaten = points.filter((p) => !best.includes(p));
    if (scatter) scatter.destroy();
    scatter = new Chart($("pareto"), {
      type: "scatter",
      data: {datasets: [
        {label: "best", data: best, showLine: true, borderColor: style("--best"), backgroundColor: style("--best"),
          pointStyle: "circle", radius: 5, borderWidth: 1.5, tension: 0},
        {label: "beaten", data: beaten, borderColor: style("--beaten"), backgroundColor: "transparent",
          pointStyle: "triangle", radius: 6, borderWidth: 2},
      ]},
      options: {
        animation: false, maintainAspectRatio: false, layout: {padding: {top: 12, right: 12}},
        scales: {x: axis(x, false), y: axis(y, logarithmic)},
        plugins: {
          legend: {display: false},
          tooltip: {callbacks: {label: (item) => {
            const r = rows[item.raw.row];
            return [`${item.raw.row} ${r.recipe}`.slice(0, 60), `${x.text}: ${significant(item.raw.x)}`, `${y.text}: ${significant(item.raw.y)}`];
          }}},
        },
      },
      plugins: [labels],
    });
    $("pareto").setAttribute("aria-label", `Scatter of ${y.text} against ${x.text}; the table below has the same numbers. Best: ` +
      best.map((p) => `${rows[p.row].recipe} at ${significant(p.x)}, ${significant(p.y)}`).join("; "));
  };

  // ---- table of models
  const plusMinus = (value, error, digits) =>
    typeof value === "number" ? `${value.toFixed(digits)}${error ? " ± " + error.toFixed(digits) : ""}` : "–";
  const rate = (value) => (value ? value.toFixed(0) : "–");
  const columns = [
    ["#", (r, i) => i, (r, i) => String(i) + (r.pareto ? " ●" : "")],
    ["recipe", (r) => r.recipe, (r) => r.recipe, "text recipe"],
    ["size", (r) => r.bytes, (r) => bytes(r.bytes)],
    ["KL", (r) => r.kl_mean ?? 0, (r) => plusMinus(r.kl_mean, r.kl_stderr, 5)],
    ["bpw", (r) => r.bpw, (r) => number(r.bpw, 3)],
    ["linear", (r) => r.linear_bpw, (r) => number(r.linear_bpw, 3)],
    ["KL 99 %", (r) => r.kl_p99 ?? 0, (r) => number(r.kl_p99, 4)],
    ["perplexity", (r) => r.ppl, (r) => plusMinus(r.ppl, r.stderr, 2)],
    ["top-1", (r) => r.top1 ?? 1, (r) => r.top1 === undefined ? "–" : `${(100 * r.top1).toFixed(2)} %`],
    ["gen/s", (r) => r.generated_tokens_per_second, (r) => rate(r.generated_tokens_per_second), "", () => has("speed")],
    ["prompt/s", (r) => r.prompt_tokens_per_second, (r) => rate(r.prompt_tokens_per_second), "", () => has("prompt")],
    ["compress, s", (r) => r.compress_seconds ?? 0, (r) => number(r.compress_seconds, 1), "",
      () => rows.some((r) => r.compress_seconds)],
  ].filter((c) => !c[4] || c[4]());
  let sorted = {column: 0, down: false};
  const drawTable = () => {
    const order = rows.map((r, i) => [r, i]);
    const key = columns[sorted.column][1];
    order.sort(([a, i], [b, j]) => {
      const left = key(a, i), right = key(b, j);
      return (left < right ? -1 : left > right ? 1 : i - j) * (sorted.down ? -1 : 1);
    });
    const head = node("tr");
    columns.forEach(([heading, , , kind], c) => {
      const cell = node("th", null, {scope: "col", class: kind ? "text" : ""});
      if (c === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      const button = node("button", heading + (c === sorted.column ? (sorted.down ? " ↓" : " ↑") : ""), {type: "button"});
      button.addEventListener("click", () => {
        sorted = {column: c, down: c === sorted.column && !sorted.down};
        drawTable();
        $("models").querySelectorAll("th button")[c].focus();
      });
      cell.append(button);
      head.append(cell);
    });
    const body = node("tbody");
    for (const [r, i] of order) {
      const line = node("tr", null, {class: r.pareto ? "best" : ""});
      for (const [, , show, kind] of columns) line.append(node("td", show(r, i), {class: kind || ""}));
      body.append(line);
    }
    const top = node("thead");
    top.append(head);
    $("models").replaceChildren(top, body);
  };
  $("models-note").textContent = "●: nothing smaller is as close to the original. bpw: all bytes of the weight files over all parameters; linear: " +
    "of the layers' matrices. KL in nats a token. ±: standard errors." +
    (rows.some((r) => r.calibration) ? " Calibration texts are named below." : "");

  // ---- tasks
  const drawTasks = () => {
    if (!rows.some((r) => r.tasks)) return;
    $("tasks-section").hidden = false;
    const head = node("tr");
    for (const heading of ["task", "recipe", "items", "acc", "acc_norm", "against the original", "p"]) {
      head.append(node("th", heading, {scope: "col", class: heading === "task" || heading === "recipe" ? "text" : ""}));
    }
    const body = node("tbody");
    const percent = (task, key, sign) => {
      if (task[key] === undefined) return "";
      return `${sign && task[key] > 0 ? "+" : ""}${(100 * task[key]).toFixed(2)} ± ${(100 * task[key + "_stderr"]).toFixed(2)}`;
    };
    const names = (rows.find((r) => r.tasks).tasks).map((t) => t.task);
    names.forEach((task, t) => rows.forEach((r) => {
      if (!r.tasks) return;
      const entry = r.tasks[t], line = node("tr");
      line.append(node("td", task, {class: "text"}), node("td", r.recipe, {class: "text recipe"}), node("td", entry.items),
        node("td", percent(entry, "acc")), node("td", percent(entry, "acc_norm")),
        node("td", percent(entry, "acc_difference", true)),
        node("td", entry.p_value === undefined ? "" : entry.p_value.toPrecision(2)));
      body.append(line);
    }));
    const top = node("thead");
    top.append(head);
    $("tasks").replaceChildren(top, body);
  };

  // ---- maps. Cividis, which runs from dark blue to yellow for every reader.
  const ramp = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116],
    [195, 179, 105], [225, 204, 85], [254, 232, 56]];
  const colour = (share) => {
    const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1), low = Math.min(ramp.length - 2, Math.floor(at));
    return ramp[low].map((c, i) => Math.round(c + (ramp[low + 1][i] - c) * (at - low)));
  };
  const roles = ["q", "k", "v", "o", "router", "gate", "up", "down", "shared_gate", "shared_up", "shared_down", "embed", "lm_head"];
  // Cells of a model: by layer and role, experts averaged by their weights.
  const cells = (row, value) => {
    const sums = new Map();
    for (const m of row.matrices) {
      if (value(m) === undefined) continue;
      const key = `${m.layer} ${m.role}`, sum = sums.get(key) || {value: 0, weights: 0, kinds: new Set()};
      sum.value += value(m) * m.weights;
      sum.weights += m.weights;
      sum.kinds.add(m.kind);
      sums.set(key, sum);
    }
    return sums;
  };
  // Cells in the colours of their values' range.
  const painter = (values, show, logarithmic) => {
    const shown = values.filter((v) => !logarithmic || v > 0);
    const scale = (v) => (logarithmic ? Math.log(v) : v);
    const low = scale(Math.min(...shown)), high = scale(Math.max(...shown));
    return (value, title) => {
      if (typeof value !== "number") return node("td", "", {class: "none"});
      const cell = node("td", show(value), {title});
      const rgb = colour(logarithmic && value <= 0 ? 0 : high > low ? (scale(value) - low) / (high - low) : 0.5);
      cell.style.background = `rgb(${rgb})`;
      cell.style.color = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 125 ? "#000" : "#fff";
      return cell;
    };
  };
  // By layer and role; `more` is a column of one value a layer, {heading, of, show}, or nothing.
  const drawMap = (table, row, value, show, logarithmic, more) => {
    const sums = cells(row, value);
    const paint = painter([...sums.values()].map((s) => s.value / s.weights), show, logarithmic);
    const seen = [...new Set(row.matrices.map((m) => m.role))];
    const ordered = [...roles.filter((r) => seen.includes(r)), ...seen.filter((r) => !roles.includes(r)).sort()]
      .filter((role) => [...sums.keys()].some((key) => key.endsWith(" " + role)));
    const layers = [...new Set([...sums.keys()].map((key) => Number(key.split(" ")[0])))].sort((a, b) => a - b);
    const values = more ? layers.map(more.of) : [];
    const paintMore = more && painter(values.filter(Number.isFinite), more.show, true);
    const head = node("tr");
    head.append(node("th", "layer", {scope: "col"}));
    for (const role of ordered) head.append(node("th", role, {scope: "col"}));
    if (more) head.append(node("th", more.heading, {scope: "col", class: "more"}));
    const body = node("tbody");
    layers.forEach((layer, i) => {
      const line = node("tr");
      line.append(node("th", layer < 0 ? "ends" : layer, {scope: "row"}));
      for (const role of ordered) {
        const sum = sums.get(`${layer} ${role}`);
        line.append(sum ? paint(sum.value / sum.weights, [...sum.kinds].join(", ")) : paint());
      }
      if (more) {
        line.append(paintMore(values[i], ""));
        line.lastChild.classList.add("more");
      }
      body.append(line);
    });
    const top = node("thead");
    top.append(head);
    table.replaceChildren(top, body);
  };
  const coded = rows.map((r, i) => [r, i]).filter(([r, i]) => i > 0 && r.matrices.length > 0);
  const drawMaps = () => {
    if (coded.length === 0) return;
    $("maps-section").hidden = false;
    const row = rows[Number($("map-choice").value)];
    const short = (v) => (v === 0 ? "0" : v.toExponential(1));
    const alone = row.layer_kl && {heading: "KL alone", show: short,
      of: (layer) => (layer < 0 ? row.ends_kl : row.layer_kl[layer])};
    $("alone-heading").hidden = $("alone-note").hidden = !alone;
    drawMap($("error-map"), row, (m) => m.error, short, true, alone);
    drawMap($("bits-map"), row, (m) => m.bits, (v) => v.toFixed(2), false);
  };
  // A line a model over its layers.
  const layerCharts = new Map();
  const drawLayers = (id, valuesOf, title) => {
    const known = coded.filter(([r]) => valuesOf(r));
    if (known.length === 0) return;
    $(id + "-block").hidden = false;
    const colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c"];
    const shapes = ["circle", "triangle", "rect", "rectRot", "cross", "star", "crossRot"];
    if (layerCharts.has(id)) layerCharts.get(id).destroy();
    layerCharts.set(id, new Chart($(id), {
      type: "line",
      data: {
        labels: valuesOf(known[0][0]).map((_, layer) => layer),
        datasets: known.map(([r, i]) => ({  // a model looks the same in all charts
          label: `${i} ${r.recipe}`.slice(0, 48), data: valuesOf(r).map((e) => (e > 0 ? e : null)),
          borderColor: colours[(i - 1) % 7], backgroundColor: colours[(i - 1) % 7], pointStyle: shapes[(i - 1) % 7], radius: 4,
          borderDash: i <= 7 ? [] : [6, 3], borderWidth: 1.5, tension: 0,
        })),
      },
      options: {
        animation: false, maintainAspectRatio: false,
        scales: {x: {...axis({text: "layer"}, false), type: "category", ticks: {color: style("--quiet")}},
          y: axis({text: title}, true)},
        plugins: {legend: {display: known.length <= 8, position: "bottom",
          labels: {usePointStyle: true, color: style("--text"), font: {size: 11}}}},
      },
    }));
    $(id).setAttribute("aria-label", `${title} by layer; of the last: ` +
      known.map(([r]) => `${r.recipe} ${significant(valuesOf(r)[valuesOf(r).length - 1])}`).join("; "));
  };

  // ---- samples
  const samplesOf = (r) => [
    ...(r.sample && rows[0].sample ? [{prompt: data.prompt, text: r.sample, base_text: rows[0].sample}] : []),
    ...(r.samples || [])];
  const withSamples = coded.filter(([r]) => samplesOf(r).length > 0);
  const drawSamples = () => {
    if (withSamples.length === 0) return;
    $("samples-section").hidden = false;
    const row = rows[Number($("sample-choice").value)];
    $("samples").replaceChildren(...samplesOf(row).map((s) => {
      const block = node("div", null, {class: "sample"});
      const part = (heading, content, kind) => {
        const box = node("div", null, {class: kind}), inner = node("div", null, {class: "text-block"});
        box.append(node("h4", heading), inner);
        inner.append(...content);
        block.append(box);
      };
      const a = Array.from(s.text), b = Array.from(s.base_text);
      let same = 0;
      while (same < a.length && same < b.length && a[same] === b[same]) ++same;
      const split = (chars) => [node("span", chars.slice(0, same).join(""), {class: "agreed"}), chars.slice(same).join("")];
      part("prompt", [s.prompt], "prompt");
      part("original", split(b), "");
      part(row.recipe + (s.agreed_tokens === undefined ? "" : `, ${s.agreed_tokens} tokens agree`), split(a), "");
      return block;
    }));
  };

  // ---- conditions
  const fact = (key, value) => {
    if (value === undefined || value === null || value === "") return;
    $("facts").append(node("dt", key.replaceAll("_", " ")), node("dd", typeof value === "object" ? JSON.stringify(value) : value));
  };
  for (const [key, value] of Object.entries(text)) fact(key, value);
  for (const [key, value] of Object.entries(data.machine)) fact(key, key === "memory_bytes" ? bytes(value) : value);
  fact("model digest", data.model.digest);
  $("command").textContent = data.command;
  rows.forEach((r, i) => {
    const calibration = r.calibration ? `; calibrated on ${r.calibration.text}, ${r.calibration.tokens} tokens, digest ${r.calibration.digest}` : "";
    $("commands").append(node("p", `${i} ${r.recipe}${calibration}`),
      node("pre", [r.compress_command, r.eval_command].filter(Boolean).join("\n")));
  });

  const named = (list) => list.map(([r, i]) => [String(i), `${i} ${r.recipe}`]);
  fill($("map-choice"), named(coded), coded.length ? String(coded[0][1]) : undefined);
  fill($("sample-choice"), named(withSamples), withSamples.length ? String(withSamples[0][1]) : undefined);
  $("alone-note").textContent = ` KL alone: of the original with only this layer from the compressed model, nats a token on ${text.layer_tokens} tokens;` +
    " ends: with its embedding and head.";
  const drawCharts = () => {
    drawScatter();
    drawLayers("alone", (r) => r.layer_kl, "KL, nats a token");
    drawLayers("streams", (r) => r.output_errors, "relative error of the stream behind a layer");
  };
  drawCharts();
  drawTable();
  drawTasks();
  drawMaps();
  drawSamples();
  $("y-choice").addEventListener("change", drawScatter);
  $("x-choice").addEventListener("change", drawScatter);
  $("log-choice").addEventListener("change", drawScatter);
  $("map-choice").addEventListener("change", drawMaps);
  $("sample-choice").addEventListener("change", drawSamples);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  document.documentElement.dataset.ready = "yes";
})();
