"use strict";
// The timeline: a lane per rank; a broad bar for what it does, a thin one for its messages, arrows between lanes.
const BROAD = 0.46, THIN = 0.08, GAP = 0.04;

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}
function mix(color, other, share) { // of two #rrggbb
  const part = (c, i) => parseInt(c.slice(i, i + 2), 16);
  const channel = i => Math.round(part(color, i) * (1 - share) + part(other, i) * share);
  return "#" + [1, 3, 5].map(i => channel(i).toString(16).padStart(2, "0")).join("");
}
function shade(color, forward) { // a layer's colour; on a dark page a little lighter
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return mix(color, "#ffffff", forward ? (dark ? 0.5 : 0.45) : dark ? 0.18 : 0);
}
function readable(color) { // black or white text
  const linear = i => {
    const c = parseInt(color.slice(i, i + 2), 16) / 255;
    return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  return 0.2126 * linear(1) + 0.7152 * linear(3) + 0.0722 * linear(5) > 0.179 ? "#000000" : "#ffffff";
}
function hatch(kind) { // a pattern for waiting: lines rising for a late sender, falling for a late receiver
  const side = 8, canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d");
  pen.fillStyle = css("wait");
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = css("hatch");
  pen.lineWidth = 1.2;
  for (const shift of [-side, 0, side]) {
    pen.beginPath();
    pen.moveTo(shift, kind === "sender_late" ? side : 0);
    pen.lineTo(shift + side, kind === "sender_late" ? 0 : side);
    pen.stroke();
  }
  return { image: canvas, repeat: "repeat" };
}
function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024 || unit === "GiB") return (unit === "B" ? n.toFixed(0) : n.toFixed(1)) + " " + unit;
    n /= 1024;
  }
}
function span(ms) {
  return ms >= 1000 ? (ms / 1000).toFixed(3) + " s" : ms >= 1 ? ms.toFixed(2) + " ms" : (ms * 1000).toFixed(1) + " \u00b5s";
}
function escape(text) {
  return String(text).replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
}

class Timeline {
  constructor(element, data, onPick) {
    this.data = data;
    this.onPick = onPick;
    this.chosen = null; // the number of a message
    element.style.height = 96 + 74 * data.ranks.length + "px";
    this.chart = echarts.init(element);
    this.chart.on("click", event => {
      if (event.seriesId === "messages") this.pick(event.dataIndex);
      else if (event.seriesId === "pieces") { this.choose(null); onPick("piece", this.step.pieces[event.dataIndex]); }
    });
  }

  show(number) {
    this.step = this.data.timelines[number];
    this.chosen = null;
    this.adjoint = new Set();
    this.draw();
  }

  pick(index) {
    const message = this.step.messages[index];
    this.choose(message);
    this.onPick("message", message, this.adjoints(message));
  }

  adjoints(message) {
    const wanted = new Set(this.step.adjoints[message.number] || []);
    return this.step.messages.filter(m => wanted.has(m.number));
  }

  choose(message) {
    this.chosen = message ? message.number : null;
    this.adjoint = new Set(message ? this.step.adjoints[message.number] || [] : []);
    this.chart.setOption({ series: [{ id: "messages", data: this.messageData() }] });
  }

  messageData() { // begin, end, the lanes that it spans
    const lane = rank => this.data.ranks.indexOf(rank);
    return this.step.messages.map(m => [m.sent, m.done, lane(m.source), lane(m.dest)]);
  }

  zoom(factor) {
    const { startValue, endValue } = this.chart.getOption().dataZoom[0];
    const middle = (startValue + endValue) / 2, half = Math.min((endValue - startValue) * factor, this.step.duration) / 2;
    const start = Math.max(0, Math.min(middle - half, this.step.duration - 2 * half));
    this.chart.dispatchAction({ type: "dataZoom", startValue: start, endValue: start + 2 * half });
  }

  draw() {
    const ranks = this.data.ranks, narrow = this.chart.getWidth() < 600, touch = matchMedia("(pointer: coarse)").matches;
    this.hatches = { sender_late: hatch("sender_late"), receiver_late: hatch("receiver_late") };
    const text = { color: css("soft") }, grid = { left: narrow ? 30 : 64, right: narrow ? 10 : 18, top: 10, bottom: 72 };
    const zoom = { filterMode: "weakFilter", minValueSpan: this.step.duration / 2000 };
    const follow = touch || { zoomOnMouseWheel: "ctrl", preventDefaultMouseMove: true };
    this.chart.setOption({
      animation: false, grid,
      tooltip: {
        trigger: "item", confine: true, backgroundColor: css("card"), borderColor: css("line"),
        textStyle: { color: css("text"), fontSize: 13 }, formatter: item => this.tip(item),
      },
      xAxis: {
        type: "value", min: 0, max: this.step.duration, axisLabel: { ...text, formatter: v => +v.toPrecision(4) + " ms", hideOverlap: true },
        axisLine: { lineStyle: { color: css("line") } }, splitLine: { lineStyle: { color: css("line"), opacity: 0.5 } },
      },
      yAxis: {
        type: "value", min: -0.5, max: ranks.length - 0.5, inverse: true, interval: 0.5, axisTick: { show: false },
        axisLine: { show: false }, splitLine: { show: false },
        axisLabel: { ...text, fontSize: 13, formatter: v => (Number.isInteger(v) && v >= 0 && v < ranks.length ? (narrow ? "" : "rank ") + ranks[v] : "") },
      },
      dataZoom: [
        { type: "inside", ...zoom, preventDefaultMouseMove: false, ...(follow === true ? {} : follow) },
        { type: "slider", ...zoom, height: 24, bottom: 8, borderColor: css("line"), textStyle: text, showDataShadow: false, labelFormatter: v => span(v) },
      ],
      series: [
        this.series("pieces", this.step.pieces.map(p => p.slice(0, 3)), (params, api) => this.piece(params, api)),
        this.series("strips", this.step.strips.map(s => s.slice(0, 3)), (params, api) => this.strip(params, api)),
        { ...this.series("messages", this.messageData(), (params, api) => this.arrow(params, api)), encode: { x: [0, 1], y: [2, 3] }, z: 5 },
      ],
    }, { notMerge: true });
  }

  series(id, data, renderItem) {
    return { id, type: "custom", clip: true, encode: { x: [0, 1], y: 2 }, data, renderItem };
  }

  box(params, api, top, height) {
    const [left, y] = api.coord([api.value(0), api.value(2) + top]), [right, bottom] = api.coord([api.value(1), api.value(2) + top + height]);
    const area = params.coordSys;
    return echarts.graphic.clipRectByRect(
      { x: left, y, width: Math.max(right - left, 0.3), height: bottom - y }, area);
  }

  color(piece) { // [fill, whether it needs an outline]
    const [, , , kind, layer, phase] = piece;
    if (this.hatches[kind]) return this.hatches[kind];
    if (kind !== "compute" || !this.data.colors[layer]) return css(kind === "compute" ? "update" : kind) || css("other");
    return shade(this.data.colors[layer], phase === "forward");
  }

  piece(params, api) {
    const piece = this.step.pieces[params.dataIndex], shape = this.box(params, api, -BROAD / 2, BROAD);
    if (!shape) return null;
    const fill = this.color(piece), name = piece[3] === "compute" ? piece[4] || piece[5] : "";
    const item = { type: "rect", shape, style: { fill, stroke: this.hatches[piece[3]] ? css("hatch") : css("card"), lineWidth: shape.width > 3 ? 0.6 : 0 } };
    if (name && shape.width > 8 * name.length) {
      item.textContent = { type: "text", style: { text: name, fontSize: 12, fill: typeof fill === "string" ? readable(fill) : css("text") } };
      item.textConfig = { position: "inside" };
    }
    item.emphasis = { style: { stroke: css("select"), lineWidth: 1.5 } };
    return item;
  }

  strip(params, api) {
    const shape = this.box(params, api, BROAD / 2 + GAP, THIN);
    return shape && { type: "rect", shape, silent: true, style: { fill: css(this.step.strips[params.dataIndex][3]) } };
  }

  arrow(params, api) {
    const message = this.step.messages[params.dataIndex], from = api.value(2), to = api.value(3), down = to > from;
    const near = BROAD / 2 + GAP + THIN / 2, [start, stop] = down ? [near, -BROAD / 2] : [-BROAD / 2, near];
    const [x1, y1] = api.coord([message.sent, from + start]), [x2, y2] = api.coord([message.done, to + stop]);
    const chosen = message.number === this.chosen, adjoint = this.adjoint.has(message.number);
    const color = css(chosen ? "select" : adjoint ? "adjoint" : message.hidden ? "hidden" : "exposed");
    const dim = this.chosen !== null && !chosen && !adjoint;
    const opacity = dim ? 0.2 : this.step.messages.length > 150 && !chosen && !adjoint ? 0.55 : 1;
    const width = chosen || adjoint ? 2.6 : 1.3, head = chosen || adjoint ? 9 : 6;
    const angle = Math.atan2(y2 - y1, x2 - x1), corner = turn => [x2 - head * Math.cos(angle + turn), y2 - head * Math.sin(angle + turn)];
    const line = { stroke: color, lineWidth: width, opacity, lineDash: message.hidden ? [5, 3] : null };
    return {
      type: "group",
      children: [
        { type: "line", shape: { x1, y1, x2, y2 }, style: line, emphasis: { style: { lineWidth: 3, opacity: 1 } } },
        { type: "polygon", shape: { points: [[x2, y2], corner(0.45), corner(-0.45)] }, style: { fill: color, opacity }, emphasis: { style: { opacity: 1 } } },
      ],
    };
  }

  tip(item) {
    if (item.seriesId === "messages") {
      const m = this.step.messages[item.dataIndex];
      return `<b>${escape(m.op || "send")} of ${escape(m.content)}, ${escape(m.layer)}</b> (${escape(m.phase)})<br>` +
        `rank ${escape(m.source)} &rarr; rank ${escape(m.dest)}, ${bytes(m.bytes)} ${escape(m.dtype)}, elements ${escape(m.start)}:${escape(m.stop)}<br>` +
        `${m.algorithm ? escape(m.algorithm) + ", " : ""}round ${escape(m.index)} of ${escape(m.count)}; sent ${span(m.sent)}, arrived ${span(m.done)}` +
        (m.reason ? `<br>why: ${escape(m.reason)}` : "");
    }
    const [begin, end, lane, kind, layer, phase, microBatch, flops] = this.step.pieces[item.dataIndex];
    const what = kind === "compute" ? `${layer} ${phase}`.trim() : this.data.kinds[kind] || kind;
    const rate = flops ? `<br>${(flops / 1e6).toFixed(1)} MFLOP, ${(flops / (end - begin) / 1e6).toFixed(2)} GFLOP/s` : "";
    return `<b>${escape(what)}</b>, rank ${escape(this.data.ranks[lane])}<br>${span(end - begin)}, from ${span(begin)}` +
      (kind !== "compute" && layer ? `<br>${escape(layer)} ${escape(phase)}` : "") + (microBatch === null ? "" : `<br>micro-batch ${escape(microBatch)}`) + rate;
  }
}
