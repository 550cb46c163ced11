// The item browser. analysis/report/browser.py packs what it reads. Texts reach the page as text nodes only.
"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  if (!$("browser")) return;
  const svg = "http://www.w3.org/2000/svg";
  // Characters that steer instead of showing; html.py has the same set.
  const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]|\n/gu;
  const shownAtFirst = 3000;

  const unpack = async (id) => {
    const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    $(id).remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };
  const sums = (counts) => {
    const found = new Uint32Array(counts.length + 1);
    counts.forEach((count, i) => { found[i + 1] = found[i] + count; });
    return found;
  };
  const number = (value, digits = 2, signed = false) =>
    value === null || Number.isNaN(value) ? "–"
      : ((signed && value > 0 ? "+" : "") + value.toFixed(digits)).replace("-", "−");
  const count = (value) => value.toLocaleString("en");
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  // A text as text: what steers is shown by its number, a line's end by an arrow too.
  const put = (parent, text) => {
    let at = 0;
    for (const found of text.matchAll(hidden)) {
      parent.append(text.slice(at, found.index));
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parent.append(element("span", "mark", found[0] === "\n" ? "↵" : `⟨U+${code}⟩`));
      if (found[0] === "\n") parent.append("\n");
      at = found.index + found[0].length;
    }
    parent.append(text.slice(at));
    return parent;
  };

  let data, arrays;
  try {
    const types = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
    data = JSON.parse(new TextDecoder().decode(await unpack("item-facts")));
    const numbers = await unpack("item-numbers");
    arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, [type, at, size]]) => {
      const Type = types[type];
      return [name, new Type(numbers.slice(at, at + size * Type.BYTES_PER_ELEMENT))];
    }));
  } catch (error) {
    $("browser-wait").textContent =
      `The items cannot be shown (${error.message}); a browser of 2023 or later shows them.`;
    return;
  }
  const items = data.id.length, runs = data.runs, checkpoints = data.steps.length;
  const { curves, pieces, stretch, times, codes } = arrays;
  const starts = sums(data.coloured), exposureStarts = sums(data.stretches), tokens = starts[items];
  // Codes are stored as differences: over checkpoints, and between the twin and the perturbed run.
  for (let i = tokens; i < checkpoints * tokens; i++) codes[i] += codes[i - tokens];
  for (let i = checkpoints * tokens; i < codes.length; i++) codes[i] += codes[i - checkpoints * tokens];
  const logprob = (run, checkpoint, token) => {
    const code = codes[(run * checkpoints + checkpoint) * tokens + token];
    return code > data.codes ? NaN : data.least * (code / data.codes) ** 2;
  };
  const value = (run, item, at = data.curveSteps.length - 1) =>
    curves[(run * data.curveSteps.length + at) * items + item];

  // ---- the list ----
  const list = $("items-list"), rows = $("items-rows");
  const small = data.id.map((id, i) => `${id}\n${data.text[i]}`.toLowerCase());
  const byKey = {
    gain: (i) => data.gain[i],
    dose: (i) => data.dose[i],
    perturbed: (i) => value(0, i),
    twin: (i) => value(1, i),
    tokens: (i) => data.tokens[i],
    item: (i) => data.id[i],
  };
  const missing = (v) => v === null || Number.isNaN(v);
  let order = [], chosen = -1, descending = true;
  const rowHeight = () => 3.4 * parseFloat(getComputedStyle(document.documentElement).fontSize);

  const arrange = () => {
    const wanted = $("items-search").value.toLowerCase();
    const family = $("items-family").value, dose = $("items-dose").value;
    const key = byKey[$("items-sort").value], sign = descending ? -1 : 1;
    order = [];
    for (let i = 0; i < items; i++) {
      if ((family === "" || data.family[i] === +family) && (dose === "" || data.dose[i] === +dose)
        && small[i].includes(wanted)) order.push(i);
    }
    order.sort((a, b) => {
      const x = key(a), y = key(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;
      return (x < y ? -sign : x > y ? sign : 0) || a - b;
    });
    $("items-count").textContent = `${count(order.length)} of ${count(items)} items`;
    if (!order.includes(chosen)) choose(order.length ? order[0] : -1);
    list.scrollTop = 0;
    draw();
  };
  const option = (place) => {
    const i = order[place], row = element("div", "option");
    row.id = `item-${i}`;
    row.style.top = `${place * rowHeight()}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", i === chosen);
    row.setAttribute("aria-setsize", order.length);
    row.setAttribute("aria-posinset", place + 1);
    const head = row.appendChild(element("div", "head"));
    put(head.appendChild(element("bdi", "name")), data.id[i]);
    head.append(element("span", "of", `dose ${count(data.dose[i])} · gain ${number(data.gain[i], 2, true)}`));
    put(row.appendChild(element("bdi", "snippet")), data.text[i].slice(0, 160));
    return row;
  };
  const draw = () => {
    const height = rowHeight();
    rows.style.height = `${order.length * height}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
    const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 5);
    rows.replaceChildren();
    for (let place = first; place < last; place++) rows.append(option(place));
    if ($(`item-${chosen}`)) list.setAttribute("aria-activedescendant", `item-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  };
  const reveal = () => {
    const top = order.indexOf(chosen) * rowHeight(), bottom = top + rowHeight();
    if (top < list.scrollTop) list.scrollTop = Math.max(0, top);
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    draw();
  };
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".option");
    if (row) { choose(+row.id.slice(5)); draw(); }
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -order.length, End: order.length };
    if (!(event.key in by) || !order.length) return;
    event.preventDefault();
    choose(order[Math.min(order.length - 1, Math.max(0, order.indexOf(chosen) + by[event.key]))]);
    reveal();
  });

  // ---- the item ----
  let checkpoint = checkpoints - 1, mode = runs.length > 1 ? "difference" : runs[0], cursor = -1, all = false;
  const scales = {
    likely: [[-0.105, "p ≥ 0.9"], [-0.693, "≥ 0.5"], [-1.609, "≥ 0.2"], [-2.303, "≥ 0.1"], [-4.605, "≥ 0.01"],
      [-6.908, "≥ 0.001"], [-Infinity, "less"]].map(([least, name], k) => [least, name, `p${6 - k}`]),
    difference: [[3, "3 nats and more likelier in the perturbed run", "d3"], [1, "1 to 3", "d2"], [0.3, "0.3 to 1", "d1"],
      [-0.3, "alike", "d0"], [-1, "0.3 to 1", "e1"], [-3, "1 to 3", "e2"],
      [-Infinity, "3 nats and more likelier in the twin", "e3"]],
  };
  const level = (v) => Number.isNaN(v) ? "none"
    : scales[mode === "difference" ? "difference" : "likely"].find(([least]) => v >= least)[2];
  // A character may be split among tokens: they are drawn, and counted, as one.
  const groups = (i) => {
    const found = [];
    for (let t = starts[i]; t < starts[i + 1]; t++) {
      if (pieces[t] || !found.length) found.push([t, t + 1, pieces[t]]);
      else found[found.length - 1][1] = t + 1;
    }
    return found;
  };
  const sum = (run, [from, to]) => {
    let total = 0;
    for (let t = from; t < to; t++) total += logprob(run, checkpoint, t);
    return total;
  };
  const shade = (group) => mode === "difference" ? sum(0, group) - sum(1, group) : sum(runs.indexOf(mode), group);
  let drawn = [];
  const drawText = () => {
    const box = $("item-text"), text = data.text[chosen], most = all ? Infinity : shownAtFirst;
    drawn = [];
    let at = 0;
    const inside = document.createDocumentFragment();
    for (const group of groups(chosen)) {
      if (at >= most) break;
      const piece = put(element("span", `t ${level(shade(group))}`), text.slice(at, at + group[2]));
      piece.dataset.k = drawn.length;
      drawn.push({ group, piece, text: text.slice(at, at + group[2]) });
      inside.append(piece);
      at += group[2];
    }
    if (at < most && at < text.length) put(inside.appendChild(element("span", "plain")), text.slice(at, most));
    box.replaceChildren(inside);
    const more = $("item-more"), rest = data.cut[chosen];
    more.hidden = all || text.length <= shownAtFirst;
    more.textContent = `Show all ${count(text.length)} characters`;
    const notes = [];
    if (data.why[chosen]) notes.push(`Not coloured: ${data.why[chosen]}.`);
    else if (data.coloured[chosen] < data.tokens[chosen]) {
      notes.push(`Coloured: the first ${count(data.coloured[chosen])} of ${count(data.tokens[chosen])} tokens.`);
    }
    if (rest) notes.push(`${count(rest)} more characters are not in this page; plan/items.parquet has them.`);
    $("item-note").textContent = notes.join(" ");
    point(Math.min(cursor, drawn.length - 1));
  };
  const point = (k) => {
    if (drawn[cursor]) drawn[cursor].piece.classList.remove("at");
    cursor = k;
    const readout = $("item-readout"), here = drawn[k];
    if (!here) {
      readout.textContent = drawn.length ? "Point at a token, or walk with the arrow keys, to read its numbers." : "";
      return;
    }
    here.piece.classList.add("at");
    readout.replaceChildren(put(element("bdi", "token"), here.text));
    const said = runs.map((run, r) => {
      const l = sum(r, here.group);
      return `${run} ${number(l)} (p ${Number.isNaN(l) ? "–" : Math.exp(l).toPrecision(2)})`;
    });
    if (runs.length > 1) said.push(`difference ${number(sum(0, here.group) - sum(1, here.group), 2, true)}`);
    readout.append(` token ${k + 1}: ${said.join(" · ")}`);
  };
  const key = () => {
    const box = $("item-key");
    box.replaceChildren(...scales[mode === "difference" ? "difference" : "likely"].map(([, name, level]) => {
      const entry = element("span", "entry");
      entry.append(element("span", `t ${level}`, "\u00a0ab\u00a0"), ` ${name}`);
      return entry;
    }));
  };
  const drawTime = () => {
    const box = $("item-time"), width = Math.max(260, box.clientWidth), plot = [10, 118], strip = [132, 152];
    const left = 46, right = width - 10, steps = data.curveSteps;
    const x = (step) => left + (right - left) * step / Math.max(1, data.last);
    const known = runs.flatMap((_, r) => steps.map((_, s) => value(r, chosen, s))).filter((v) => !Number.isNaN(v));
    const low = Math.min(...known), high = Math.max(...known);
    const y = (v) => high > low ? plot[1] - (plot[1] - plot[0]) * (v - low) / (high - low) : (plot[0] + plot[1]) / 2;
    const picture = document.createElementNS(svg, "svg");
    const add = (name, className, attributes, text) => {
      const made = picture.appendChild(document.createElementNS(svg, name));
      made.setAttribute("class", className);
      for (const [key, v] of Object.entries(attributes)) made.setAttribute(key, v);
      if (text !== undefined) made.textContent = text;
    };
    add("line", "axis", { x1: left, x2: right, y1: plot[1], y2: plot[1] });
    add("line", "axis", { x1: left, x2: right, y1: strip[1], y2: strip[1] });
    if (known.length) {
      add("text", "end", { x: left - 6, y: plot[0] + 4 }, number(high));
      if (high > low) add("text", "end", { x: left - 6, y: plot[1] + 4 }, number(low));
    }
    add("text", "", { x: left, y: strip[1] + 16 }, "step 0");
    add("text", "end", { x: right, y: strip[1] + 16 }, count(data.last));
    add("line", "now", { x1: x(data.steps[checkpoint]), x2: x(data.steps[checkpoint]), y1: plot[0], y2: strip[1] });
    for (let r = runs.length - 1; r >= 0; r--) {
      const points = steps.map((step, s) => [x(step), value(r, chosen, s)])
        .filter(([, v]) => !Number.isNaN(v)).map(([at, v]) => [at, y(v)]);
      add("polyline", `curve ${runs[r]}`, { points: points.map((p) => p.join()).join(" ") });
      for (const [cx, cy] of points) add("circle", `dot ${runs[r]}`, { cx, cy, r: 3 });
    }
    const [from, to] = [exposureStarts[chosen], exposureStarts[chosen + 1]];
    let total = 0;
    for (let e = from; e < to; e++) {
      total += times[e];
      const at = x((stretch[e] + 0.5) * data.stretchSteps - 0.5);
      add("line", "exposure", { x1: at, x2: at, y1: strip[1] - Math.min(20, 12 + 2 * times[e]), y2: strip[1] });
    }
    const wide = data.stretchSteps > 1 ? `; a tick stands for ${data.stretchSteps} steps` : "";
    const when = total ? `${count(total)} ${total > 1 ? "exposures" : "exposure"}, from step ${
      count(stretch[from] * data.stretchSteps)} to ${count(Math.min(data.last, (stretch[to - 1] + 1) * data.stretchSteps - 1))
    }${wide}` : "never inserted";
    const ticks = data.undated ? "When it was read is not known." : `Ticks: ${when}.`;
    $("item-when").textContent = `${ticks} Lines: ${data.metric} (${data.unit}) at the checkpoints.`;
    picture.setAttribute("viewBox", `0 0 ${width} 174`);
    picture.setAttribute("width", width);
    picture.setAttribute("height", 174);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `Time line: ${when}. ${data.metric} at the last checkpoint: ${
      runs.map((run, r) => `${run} ${number(value(r, chosen), 3)}`).join(", ")}.`);
    box.replaceChildren(picture);
  };
  const drawContinued = () => {
    const box = $("item-continued"), made = data.continued, here = made.items && made.items[chosen];
    box.hidden = !here;
    if (!here) return;
    const [reference, texts, hits, samples, needed] = here;
    const sampled = (samples ? `; ${hits} of ${samples} samples verbatim` : "")
      + (needed ? `; one of ${needed} samples would be, with probability 1/2` : "");
    box.replaceChildren(
      element("h5", "", `What was written after its first ${count(made.prefix)} tokens, greedily, at step ${count(made.step)}`));
    const entry = (name, text) => {
      box.append(element("p", "caption", name));
      const shown = put(box.appendChild(element("div", "item")), text);
      shown.dir = "auto";
    };
    entry("the item goes on", reference);
    made.runs.forEach((run, r) => {
      if (texts[r]) entry(`${run}: edit similarity ${number(texts[r][1], 2)}${r ? "" : sampled}`, texts[r][0]);
    });
  };
  function choose(i) {
    chosen = i;
    cursor = -1;
    all = false;
    $("item").hidden = i < 0;
    if (i < 0) return;
    $("item-title").replaceChildren(put(element("bdi"), data.id[i]));
    const facts = [["family", data.families[data.family[i]]], ["dose", count(data.dose[i])],
      ["arm", data.arms[data.arm[i]]], ["stratum", data.strata[data.stratum[i]]], ["tokens", count(data.tokens[i])],
      ...runs.map((run, r) => [run, number(value(r, i), 3)]),
      ...(runs.length > 1 ? [["perturbed − twin", number(value(0, i) - value(1, i), 3, true)]] : []),
      [runs.length > 1 ? "gain over dose 0 against the twin" : "gain over dose 0", number(data.gain[i], 3, true)]];
    $("item-facts-list").replaceChildren(...facts.flatMap(([name, text]) =>
      [element("dt", "", name), put(element("dd").appendChild(element("bdi")), text).parentNode]));
    drawText();
    drawTime();
    drawContinued();
  }
  $("item-text").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -drawn.length, End: drawn.length };
    if (!(event.key in by) || !drawn.length) return;
    event.preventDefault();
    point(Math.min(drawn.length - 1, Math.max(0, cursor + by[event.key])));
    drawn[cursor].piece.scrollIntoView({ block: "nearest" });
  });
  for (const what of ["mouseover", "click"]) {
    $("item-text").addEventListener(what, (event) => {
      const piece = event.target.closest("[data-k]");
      if (piece) point(+piece.dataset.k);
    });
  }
  $("item-more").addEventListener("click", () => { all = true; drawText(); $("item-text").focus(); });
  const slider = $("item-step");
  const told = () => {
    slider.setAttribute("aria-valuetext", `step ${data.steps[checkpoint]}`);
    $("item-step-told").textContent = `step ${count(data.steps[checkpoint])}`;
  };
  slider.addEventListener("input", () => {
    checkpoint = +slider.value;
    told();
    if (chosen >= 0) { drawText(); drawTime(); }
  });
  $("item-mode").addEventListener("change", () => {
    mode = $("item-mode").value;
    key();
    if (chosen >= 0) drawText();
  });

  // ---- start ----
  const choices = (select, named) => select.append(...named.map(([value, name]) => {
    const made = put(element("option"), name);
    made.value = value;
    return made;
  }));
  choices($("items-family"), data.families.map((name, i) => [i, name]));
  choices($("items-dose"), [...new Set(data.dose)].sort((a, b) => a - b).map((dose) => [dose, count(dose)]));
  choices($("items-sort"), Object.keys(byKey).filter((name) => name !== "twin" || runs.length > 1)
    .map((name) => [name, name === "perturbed" || name === "twin" ? `${data.metric}, ${name}` : name]));
  choices($("item-mode"), [...(runs.length > 1 ? [["difference", "perturbed − twin"]] : []), ...runs.map((run) => [run, run])]);
  slider.max = checkpoints - 1;
  slider.value = checkpoint;
  slider.disabled = checkpoints < 2;
  for (const id of ["items-search", "items-family", "items-dose", "items-sort"]) $(id).addEventListener("input", arrange);
  $("items-direction").addEventListener("click", () => {
    descending = !descending;
    $("items-direction").textContent = descending ? "highest first" : "lowest first";
    arrange();
  });
  $("browser-wait").remove();
  $("browser").hidden = false;
  told();
  key();
  arrange();
  let wide = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === wide) return;
    wide = window.innerWidth;
    draw();
    if (chosen >= 0) drawTime();
  });
  document.documentElement.dataset.items = "ready";
})();
