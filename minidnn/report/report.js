// The rest of the page: charts, tables and the record of what was clicked.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
let timeline = null, charts = [];

function fillTables() {
  byId("title").textContent = `${data.title || "minidnn"}, ${data.ranks.length} rank${data.ranks.length > 1 ? "s" : ""}`;
  document.title = `${byId("title").textContent} - minidnn report`;
  const typical = data.typical === null ? "" : `, a typical one takes ${span(data.durations[data.steps.indexOf(data.typical)])}`;
  const sent = data.matrix.flat().reduce((a, b) => a + b, 0);
  byId("summary").textContent = `${data.steps.length} steps traced${typical}; ${bytes(sent)} sent in a step.`;
  byId("facts").innerHTML = data.facts.map(([k, v]) => `<tr><td>${escape(k)}</td><td>${escape(v)}</td></tr>`).join("");
  byId("fit").textContent = data.fit;
  if (data.collectives) {
    const cells = (row, tag) => "<tr>" + row.map(c => `<${tag}>${escape(c)}</${tag}>`).join("") + "</tr>";
    byId("collectives").innerHTML = cells(data.collectives.header, "th") + data.collectives.rows.map(r => cells(r, "td")).join("");
  }
  fillPlan();
  const present = {
    "timeline-section": data.typical !== null, "matrix-section": data.matrix.length, "memory-section": data.memory.names.length,
    "loss-section": data.training.length || data.losses.some(x => x !== null), "accuracy-section": data.epochs.some(e => typeof e.accuracy === "number"), "duration-section": data.steps.length > 1,
    "collective-section": data.collectives, "plan-section": data.plan.length || data.plan_text,
  };
  for (const [id, shown] of Object.entries(present)) byId(id).hidden = !shown;
}

function fillPlan() {
  byId("plan-text").textContent = data.plan.length ? "" : data.plan_text;
  byId("plan-text").hidden = data.plan.length > 0;
  if (!data.plan.length) return;
  const head = data.plan[0].cells.map((_, r) => `<th>rank ${r}</th>`).join("");
  const rows = data.plan.map(row => {
    const layer = row.kind === "layer";
    const cells = row.cells.map(text => `<td class="cell${text === null ? "" : " part"}"${layer && text !== null ? ` data-layer="${escape(row.name)}"` : ""}>${escape(text || "")}</td>`).join("");
    return `<tr class="${layer ? "layer" : "communication"}"><td>${escape(row.name)}<small>${escape(row.detail)}</small></td><td class="detail">${escape(row.detail)}</td><td class="detail shape">${escape(row.shape)}</td>${cells}</tr>`;
  });
  byId("plan").innerHTML = `<tr><th>layer</th><th class="detail">placement</th><th class="shape">output</th>${head}</tr>` + rows.join("");
}

function paintPlan() { // the layers' colours, as in the timeline
  for (const cell of document.querySelectorAll("#plan td[data-layer]")) {
    const color = data.colors[cell.dataset.layer];
    if (color) {
      const back = shade(color, true);
      cell.style.background = back;
      cell.style.color = readable(back);
    }
  }
}

function fillLegend() {
  const step = timeline.step, used = new Set(step.pieces.map(p => p[3]).concat(step.strips.map(s => s[3])));
  const families = {}, items = [];
  for (const layer of data.layers) (families[data.colors[layer]] ||= []).push(layer);
  for (const [color, names] of Object.entries(families)) items.push([`background:${shade(color, false)}`, "", names[0] + (names.length > 1 ? " \u2026" : ""), names.join(", ")]);
  items.push([`background:linear-gradient(90deg, ${mix("#555555", "#ffffff", 0.45)} 50%, #555555 50%)`, "", "lighter: forward, darker: backward"]);
  for (const [kind, name] of Object.entries(data.kinds)) {
    if (!used.has(kind)) continue;
    const angle = { sender_late: "135deg", receiver_late: "45deg" }[kind];
    items.push(angle ? [`--angle:${angle}`, "hatched", name] : [`background:${css(kind)}`, "", name]);
  }
  if (step.messages.length) items.push(["", "arrow", "message, exposed"], ["", "arrow dashed", "message, hidden"]);
  byId("legend").innerHTML = items.map(([style, kind, name, all]) => `<span title="${escape(all || name)}"><i class="${kind}" style="${style}"></i>${escape(name)}</span>`).join("");
}

function list(pairs) {
  return "<dl>" + pairs.filter(([, v]) => v !== null && v !== "" && v !== undefined)
    .map(([k, v]) => `<div><dt>${escape(k)}</dt><dd>${escape(v)}</dd></div>`).join("") + "</dl>";
}

function showDetails(kind, record, adjoints) {
  if (kind === "piece") {
    const [begin, end, lane, state, layer, phase, microBatch, flops] = record;
    const what = state === "compute" ? "computing" : data.kinds[state] || state;
    byId("details").innerHTML = list([["what", what], ["rank", data.ranks[lane]], ["layer", layer], ["phase", phase],
      ["micro-batch", microBatch], ["begin", span(begin)], ["end", span(end)], ["duration", span(end - begin)],
      ["GFLOP/s", flops ? (flops / (end - begin) / 1e6).toFixed(2) : null]]);
    return;
  }
  const m = record;
  const names = adjoints.map(a => `<button data-number="${escape(a.number)}">${escape(a.op || "send")}, rank ${escape(a.source)} &rarr; ${escape(a.dest)}, round ${escape(a.index)} of ${escape(a.count)}, at ${span(a.sent)}</button>`);
  const other = m.phase === "forward" ? "Its gradient comes back in backward by" : "It returns the gradient of the forward";
  const adjoint = names.length ? `<p>${other}: ${names.slice(0, 4).join(" ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""}</p>`
    : `<p class="why">${m.phase === "gradient sync" ? "Its adjoint is the use of the same weights on every rank, which needs no message." : "It has no adjoint message."}</p>`;
  byId("details").innerHTML = `<p><b>${escape(m.op || "send")} of ${escape(m.content)} for ${escape(m.layer)}</b>: rank ${escape(m.source)} to rank ${escape(m.dest)}` +
    (m.reason ? ` <span class="why">Why: ${escape(m.reason)}.</span>` : "") + "</p>" + adjoint + list([
    ["phase", m.phase], ["algorithm", m.algorithm], ["round", `${m.index} of ${m.count}`], ["ranks", m.group.join(", ")],
    ["bytes", `${m.bytes} (${bytes(m.bytes)})`], ["elements", `${m.start}:${m.stop} ${m.dtype}`], ["tag", m.tag], ["micro-batch", m.micro_batch],
    ["sent", span(m.sent)], ["receive posted", span(m.ready)], ["arrived", span(m.done)], ["sender late", span(m.sender_late)],
    ["receiver late", span(m.receiver_late)], ["transfer", span(m.wire)], ["communication", m.hidden ? "hidden" : "exposed"],
    ["largest difference from the one-process run", m.difference === null ? null : m.difference.toExponential(1)]]);
  for (const button of byId("details").querySelectorAll("button")) {
    button.onclick = () => timeline.pick(timeline.step.messages.findIndex(x => x.number === +button.dataset.number));
  }
}

function chart(id, height, option) {
  const element = byId(id);
  if (element.closest("section").hidden) return;
  element.style.height = height + "px";
  const made = echarts.init(element), text = { color: css("soft") }, line = { lineStyle: { color: css("line") } };
  const axis = own => ({ axisLabel: { ...text, hideOverlap: true, ...own.axisLabel }, nameTextStyle: text, axisLine: line, axisTick: line,
    splitLine: { lineStyle: { color: css("line"), opacity: 0.6 } }, ...Object.fromEntries(Object.entries(own).filter(([k]) => k !== "axisLabel")) });
  const tooltip = { confine: true, backgroundColor: css("card"), borderColor: css("line"), textStyle: { color: css("text"), fontSize: 13 }, ...option.tooltip };
  made.setOption({ animation: false, textStyle: text, grid: { left: 8, right: 20, top: 34, bottom: 8 },
    ...option, tooltip, xAxis: axis(option.xAxis), yAxis: axis(option.yAxis),
    ...(option.legend ? { legend: { type: "scroll", top: 0, left: 0, textStyle: { color: css("text") }, pageTextStyle: text, pageIconColor: css("text"), pageIconInactiveColor: css("line"), ...option.legend } } : {}) });
  charts.push(made);
}

function drawCharts() {
  const names = data.ranks.map(r => `rank ${r}`), tall = 70 + 30 * names.length;
  const parts = Object.entries(data.parts);
  const fill = { compute: "#44aa99", hidden: css("hidden"), sender_late: hatch("sender_late"), receiver_late: hatch("receiver_late") };
  const bars = parts.map(([key, name], i) => ({
    name, type: "bar", stack: key === "hidden" ? "beside" : "wall", barMaxWidth: key === "hidden" ? 6 : 20, barGap: "10%",
    itemStyle: { color: fill[key] || css(key), borderColor: css(key.endsWith("_late") ? "hatch" : "card"), borderWidth: key.endsWith("_late") ? 0.8 : 0 },
    data: data.split.map(row => row[i]),
  }));
  const ms = v => (v === undefined || v === null ? "" : span(v));
  chart("split", tall + 24, { tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: ms }, legend: {},
    xAxis: { type: "value", axisLabel: { formatter: "{value} ms" } }, yAxis: { type: "category", data: names, inverse: true }, series: bars });
  const cells = data.matrix.flatMap((row, s) => row.map((b, d) => [d, s, b || "-"]));
  const most = Math.max(1, ...data.matrix.flat());
  const labels = data.ranks.length <= 4;
  chart("matrix", 90 + Math.max(110, 34 * names.length), {
    tooltip: { formatter: i => `rank ${escape(data.ranks[i.value[1]])} &rarr; rank ${escape(data.ranks[i.value[0]])}: ${i.value[2] === "-" ? "nothing" : bytes(i.value[2])}` },
    xAxis: { type: "category", data: data.ranks, name: "to", nameLocation: "middle", nameGap: 26, splitArea: { show: false } },
    yAxis: { type: "category", data: data.ranks.map(r => `from ${r}`), inverse: true },
    visualMap: { min: 0, max: most, orient: "horizontal", left: "center", top: 0, itemHeight: 110, itemWidth: 12, calculable: false, textStyle: { color: css("soft") },
      text: [bytes(most), "0"], inRange: { color: [mix(css("hidden"), css("card"), 0.85), css("hidden")] } },
    grid: { left: 8, right: 20, top: 40, bottom: 4 },
    series: [{ type: "heatmap", data: cells, label: { show: labels, formatter: i => (i.value[2] === "-" ? "" : bytes(i.value[2])), color: readable(css("hidden")) },
      itemStyle: { borderColor: css("card"), borderWidth: 2 } }] });
  const shades = ["#332288", "#88ccee", "#44aa99", "#ddcc77", "#cc6677", "#aa4499", "#999933"];
  chart("memory", tall, { tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: bytes }, legend: {},
    xAxis: { type: "value", axisLabel: { formatter: bytes } }, yAxis: { type: "category", data: names, inverse: true },
    series: data.memory.names.map((name, i) => ({ name, type: "bar", stack: name.includes("peak") ? "peak" : "all", barMaxWidth: name.includes("peak") ? 6 : 20, barGap: "10%", itemStyle: { color: shades[i % shades.length] }, data: data.memory.bytes.map(row => row[i]) })) });
  curves();
  const line = { type: "line", showSymbol: data.steps.length < 40, symbolSize: 6 };
  chart("durations", 240, { tooltip: { trigger: "axis", valueFormatter: ms }, xAxis: { type: "category", data: data.steps, name: "step", nameLocation: "middle", nameGap: 26 },
    yAxis: { type: "value", min: 0, axisLabel: { formatter: "{value} ms" } }, grid: { left: 8, right: 20, top: 14, bottom: 4 },
    series: [{ ...line, name: "time", itemStyle: { color: css("accent") }, data: data.durations }] });
}

function curves() { // over all steps where run.json has them, else over the traced ones
  const all = data.training.length > 0, first = all ? data.training.map((v, i) => [i + 1, v]) : data.steps.map((n, i) => [n, data.losses[i]]);
  const points = (key, scale) => data.epochs.filter(e => typeof e[key] === "number").map(e => [e.step, scale * e[key]]);
  const line = (name, points, color, symbol) => ({ type: "line", name, data: points, symbol, symbolSize: 7, showSymbol: points.length < 40, lineStyle: { width: 1.5 }, itemStyle: { color } });
  const x = { type: "value", min: "dataMin", max: "dataMax", minInterval: 1, name: "step", nameLocation: "middle", nameGap: 26 };
  const read = v => (v === undefined || v === null ? "" : (+v).toPrecision(4));
  const option = (series, y) => ({ tooltip: { trigger: "axis", valueFormatter: read }, legend: {}, grid: { left: 8, right: 20, top: 34, bottom: 4 }, xAxis: x, yAxis: y, series: series.filter(s => s.data.length) });
  chart("loss", 260, option([line("training", first, css("accent"), "circle"), line("validation", points("validation_loss", 1), css("exposed"), "diamond")], { type: "value", min: 0 }));
  chart("accuracy", 260, option([line("training", points("accuracy", 100), css("accent"), "circle"), line("validation", points("validation_accuracy", 100), css("exposed"), "diamond")],
    { type: "value", min: 0, max: 100, axisLabel: { formatter: "{value} %" } }));
}

function draw() {
  for (const made of charts.splice(0)) made.dispose();
  if (timeline) { timeline.draw(); fillLegend(); }
  drawCharts();
  paintPlan();
}

fillTables();
if (data.typical !== null) {
  timeline = new Timeline(byId("timeline"), data, showDetails);
  const select = byId("step");
  select.innerHTML = Object.keys(data.timelines).map(n => `<option value="${escape(n)}">${escape(n)}, ${span(data.timelines[n].duration)}</option>`).join("");
  select.value = data.typical;
  const hint = () => { byId("details").innerHTML = '<p class="why">Click a message or a bar to see its record here.</p>'; };
  select.onchange = () => { timeline.show(select.value); fillLegend(); hint(); };
  timeline.show(select.value);
  hint();
  byId("hint").textContent = matchMedia("(pointer: coarse)").matches ? "Pinch to zoom, drag to move." : "Ctrl + wheel to zoom, drag to move.";
  byId("zoom-in").onclick = () => timeline.zoom(0.5);
  byId("zoom-out").onclick = () => timeline.zoom(2);
  byId("zoom-all").onclick = () => timeline.zoom(1e9);
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("resize", () => { // a phone turned round, or a window pulled wider
  if (timeline) timeline.chart.resize();
  for (const made of charts) made.resize();
});
