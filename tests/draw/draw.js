// Draws a Grafana board from its JSON and from what Prometheus answered to its queries (DATA, see data.js).
//
// Only what our boards use: stat, table, timeseries, state-timeline, heatmap; value mappings, thresholds, units,
// legends, overrides by name, the transformations merge and organize, annotations. It tells on the console,
// as one line of JSON, what it drew in each panel; whoever started it judges.
'use strict';

const COLORS = {
  green: '#56a64b', blue: '#3274d9', yellow: '#e0b400', orange: '#ff780a', red: '#e02f44', purple: '#a352cc',
  transparent: 'transparent',
};
const PALETTE = ['#73bf69', '#fade2a', '#5794f2', '#ff9830', '#f2495c', '#b877d9', '#8ab8ff', '#ca95e5', '#96d98d',
  '#ffee52', '#ffb357', '#ff7383', '#37872d', '#e0b400', '#1f60c4', '#c4162a', '#8f3bb8'];
const TEXT = '#ccccdc', LINE = '#2c2f36', FONT = 'DejaVu Sans, sans-serif';
const CELL = 38, WIDTH = 1600;
const color = (name) => COLORS[name] || name || TEXT;

function trim(number, decimals) {
  if (decimals !== undefined && decimals !== null) return number.toFixed(decimals);
  return String(Number(number.toPrecision(3)));
}

function scaled(value, steps, decimals) {
  const size = Math.abs(value);
  const [factor, unit] = steps.find(([factor]) => size >= factor) || steps[steps.length - 1];
  return `${trim(value / factor, decimals)}${unit}`;
}

// A figure as Grafana writes it in this unit.
function format(value, unit, decimals) {
  if (value === null || Number.isNaN(value)) return '';
  switch (unit) {
    case 's':
      return value === 0 ? '0 s' : scaled(value, [[86400, ' days'], [3600, ' hours'], [60, ' min'], [1, ' s'], [1e-3, ' ms'], [1e-6, ' µs']],
        Math.abs(value) < 1 ? undefined : decimals);
    case 'bytes': return value === 0 ? '0 B' : scaled(value, [[2 ** 40, ' TiB'], [2 ** 30, ' GiB'], [2 ** 20, ' MiB'], [1024, ' KiB'], [1, ' B']], decimals);
    case 'percentunit': return `${trim(value * 100, decimals)}%`;
    case 'short': return scaled(value, [[1e6, ' Mil'], [1e3, ' K'], [1, '']], decimals);
    case 'wps': return `${trim(value, decimals)} wr/s`;
    case 'none': return trim(value, decimals);
    default: throw new Error(`unit ${unit} is not known here`);
  }
}

function mapped(value, mappings) {
  for (const mapping of mappings || []) {
    const hit = mapping.options[String(value)];
    if (hit) return hit;
  }
  return null;
}

// The colour of the last step that the value reaches.
function stepColor(value, thresholds) {
  const reached = (thresholds ? thresholds.steps : []).filter((step) => step.value === null || step.value === undefined || value >= step.value);
  return reached.length ? reached[reached.length - 1].color : null;
}

const plain = (labels) => Object.entries(labels).filter(([key]) => key !== '__name__').map(([key, value]) => `${key}="${value}"`).join(', ');

function legend(format, labels) {
  if (format === '__auto') return plain(labels);
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] || '').replace(/\s+/g, ' ').trim();
}

// All series of a panel in the order of its queries: name and [[milliseconds, value]].
function seriesOf(panel) {
  const found = [];
  for (const target of panel.targets) {
    for (const series of DATA.results[panel.id][target.refId]) {
      const points = series.values.map(([time, value]) => [time * 1000, Number(value)]).filter(([, value]) => !Number.isNaN(value));
      if (points.length) found.push({ name: legend(target.legendFormat, series.metric), labels: series.metric, points });
    }
  }
  return found;
}

// Points with a null wherever a step is missing, so that a gap stays a gap.
function withGaps(points) {
  const out = [];
  for (const point of points) {
    if (out.length && point[0] - out[out.length - 1][0] > 1.5 * DATA.step * 1000) out.push([out[out.length - 1][0] + 1, null]);
    out.push(point);
  }
  return out;
}

const clock = (time) => new Date(time).toISOString().slice(11, 19);

function chart(body, option) {
  const made = echarts.init(body, null, { renderer: 'canvas', devicePixelRatio: 1 });
  made.setOption({ animation: false, backgroundColor: '#181b1f', textStyle: { fontFamily: FONT, color: TEXT }, ...option });
  made.getZr().flush();
  return made;
}

const timeAxis = () => ({
  type: 'time', containShape: false, min: DATA.start * 1000, max: DATA.end * 1000,
  axisLine: { lineStyle: { color: LINE } }, splitLine: { show: true, lineStyle: { color: LINE } },
  axisLabel: { color: TEXT, formatter: clock, hideOverlap: true, fontSize: 11 },
});

// Annotations as vertical lines; a run of neighbouring moments is one event.
function marks() {
  const data = [];
  for (const note of DATA.annotations) {
    if (!note.enable) continue;
    for (const series of note.result) {
      let last = -Infinity;
      for (const [time] of series.values) {
        if (time - last > 1.5 * DATA.step) data.push({ xAxis: time * 1000, lineStyle: { color: color(note.color), type: 'dashed', width: 1 } });
        last = time;
      }
    }
  }
  return data;
}

const grid = (panel, wide, bottom) => ({ left: wide || (panel.gridPos.w <= 8 ? 62 : 72), right: 14, top: 10, bottom });

function lines(panel, body) {
  const all = seriesOf(panel), defaults = panel.fieldConfig.defaults, custom = defaults.custom || {};
  if (!all.length) return none(panel, body);
  const log = custom.scaleDistribution && custom.scaleDistribution.type === 'log';
  const dashed = custom.thresholdsStyle && custom.thresholdsStyle.mode === 'dashed';
  const limits = dashed ? defaults.thresholds.steps.filter((step) => step.value !== null && step.value !== undefined) : [];
  const bars = custom.drawStyle === 'bars', perRow = Math.max(1, Math.floor(panel.gridPos.w / 7)), rows = Math.min(panel.gridPos.w > 8 ? 4 : 3, Math.ceil(all.length / perRow));
  // A threshold far above everything would flatten the figures; Grafana leaves it out of the view as well.
  const largest = Math.max(...all.flatMap((series) => series.points.map(([, value]) => value)));
  const smallest = Math.min(...all.flatMap((series) => series.points.map(([, value]) => value)).filter((value) => !log || value > 0));
  const last = (points) => points[points.length - 1][1];
  const value = (number) => format(number, defaults.unit, defaults.decimals);
  const name = (series) => `${series.name || 'value'}   max ${value(Math.max(...series.points.map(([, v]) => v)))}, last ${value(last(series.points))}`;
  const made = chart(body, {
    color: PALETTE,
    grid: { ...grid(panel, custom.axisWidth, 26 + 18 * rows) },
    legend: {
      bottom: 0, left: custom.axisWidth || 8, right: 4, type: 'plain', itemWidth: 14, itemHeight: 3, itemGap: 12,
      height: 18 * rows, icon: 'rect', data: all.slice(0, rows * perRow).map(name),
      textStyle: { color: TEXT, fontSize: 11, width: (panel.gridPos.w * WIDTH / 24 - (custom.axisWidth || 8)) / perRow - 34, overflow: 'truncate' },
    },
    xAxis: timeAxis(),
    yAxis: {
      type: log ? 'log' : 'value', scale: defaults.min === undefined,
      min: log ? 10 ** Math.floor(Math.log10(smallest)) : defaults.min, max: defaults.max,
      minInterval: defaults.decimals === 0 ? 1 : 0,
      axisLabel: { color: TEXT, fontSize: 11, formatter: (number) => format(number, defaults.unit) },
      splitLine: { lineStyle: { color: LINE } },
    },
    series: all.map((series, index) => ({
      name: name(series), type: bars ? 'bar' : 'line', stack: bars ? 'all' : undefined, barMinWidth: 3, barMaxWidth: 14,
      symbol: series.points.length === 1 ? 'circle' : 'none', symbolSize: 4, lineStyle: { width: 1.5 },
      data: bars ? series.points : withGaps(series.points).map(([time, v]) => [time, log && v !== null && v <= 0 ? null : v]),
      markLine: index ? undefined : {
        symbol: 'none', silent: true, label: { show: false },
        data: [
          ...(dashed ? limits.filter((step) => step.value <= largest * 3).map((step) => ({
            yAxis: step.value, lineStyle: { color: color(step.color), type: [6, 4], width: 1.5 },
            label: { show: true, formatter: value(step.value), position: 'insideEndTop', color: color(step.color) },
          })) : []),
          ...marks(),
        ],
      },
    })),
  });
  return { series: all.length, painted: painted(made) };
}

// States in lanes; equal neighbours are one bar, and a step without a figure is a gap.
function lanes(panel, body) {
  const all = seriesOf(panel), defaults = panel.fieldConfig.defaults;
  if (!all.length) return none(panel, body);
  const byName = new Map();
  for (const series of all) byName.set(series.name, [...(byName.get(series.name) || []), ...series.points].sort((a, b) => a[0] - b[0]));
  const names = [...byName.keys()], bars = [], step = DATA.step * 1000;
  names.forEach((lane, row) => {
    for (const [time, state] of byName.get(lane)) {
      const last = bars[bars.length - 1];
      if (last && last[0] === row && last[3] === state && time - last[2] < step / 2) last[2] = time + step;
      else bars.push([row, time, time + step, state]);
    }
  });
  const unknown = bars.find((bar) => !mapped(bar[3], defaults.mappings));
  if (unknown) throw new Error(`${panel.title}: the state ${unknown[3]} has no name`);
  const made = chart(body, {
    grid: grid(panel, (defaults.custom || {}).axisWidth, 24),
    xAxis: timeAxis(),
    yAxis: {
      type: 'category', data: names, inverse: true, axisTick: { show: false }, axisLine: { show: false },
      axisLabel: { color: TEXT, fontSize: names.length > 22 ? 9 : 11, interval: 0, width: ((defaults.custom || {}).axisWidth || 90) - 14, overflow: 'truncate' },
    },
    series: [{
      type: 'custom', encode: { x: [1, 2], y: 0 }, data: bars, clip: true,
      renderItem(params, api) {
        const from = api.coord([api.value(1), api.value(0)]), to = api.coord([api.value(2), api.value(0)]);
        const height = api.size([0, 1])[1] * 0.85, width = Math.max(1, to[0] - from[0]);
        const state = mapped(api.value(3), defaults.mappings);
        const shape = echarts.graphic.clipRectByRect({ x: from[0], y: from[1] - height / 2, width, height },
          { x: params.coordSys.x, y: params.coordSys.y, width: params.coordSys.width, height: params.coordSys.height });
        if (!shape) return null;
        return {
          type: 'rect', shape, style: { fill: color(state.color), opacity: state.color === 'green' ? 0.55 : 0.95 },
          textContent: shape.width > state.text.length * 6.5 + 6 && height > 9
            ? { style: { text: state.text, fill: '#fff', fontSize: Math.min(11, height - 2), fontFamily: FONT } } : undefined,
          textConfig: { position: 'insideLeft' },
        };
      },
      markLine: { symbol: 'none', silent: true, label: { show: false }, data: marks() },
    }],
  });
  return { series: names.length, painted: painted(made) };
}

// A cumulative histogram over time: what each bucket got more than the one below.
function distribution(panel, body) {
  const bounds = seriesOf(panel).map((series) => ({ le: Number(series.labels.le.replace('+Inf', 'Infinity')), points: new Map(series.points) }))
    .sort((a, b) => a.le - b.le);
  const cells = [];
  bounds.forEach((bound, row) => {
    for (const [time, upTo] of bound.points) {
      const own = upTo - (row ? bounds[row - 1].points.get(time) || 0 : 0);
      if (own > 0.01) cells.push([time, row, own]);
    }
  });
  if (!cells.length) return none(panel, body);
  const used = cells.map(([, row]) => row), low = Math.max(0, Math.min(...used) - 1), high = Math.min(bounds.length - 1, Math.max(...used) + 1);
  const names = bounds.slice(low, high + 1).map(({ le }) => (le === Infinity ? 'longer' : `≤ ${format(le, 's')}`));
  const most = Math.max(...cells.map(([, , count]) => count)), step = DATA.step * 1000;
  const made = chart(body, {
    grid: grid(panel, panel.options.yAxis.axisWidth, 24),
    xAxis: timeAxis(),
    yAxis: { type: 'category', data: names, axisLabel: { color: TEXT, fontSize: 11, interval: 0 }, axisTick: { show: false }, splitLine: { show: true, lineStyle: { color: LINE } } },
    visualMap: {
      type: 'continuous', dimension: 2, min: 0, max: most, orient: 'horizontal', right: 14, top: 0, itemHeight: 90, itemWidth: 8, show: false,
      inRange: { color: ['#2c3f66', '#3288bd', '#66c2a5', '#e6f598', '#fdae61', '#d53e4f'] },
    },
    series: [{
      type: 'custom', data: cells.map(([time, row, count]) => [time, row - low, count]), clip: true, encode: { x: 0, y: 1 },
      renderItem(params, api) {
        const from = api.coord([api.value(0), api.value(1)]), to = api.coord([api.value(0) + step, api.value(1)]);
        const height = api.size([0, 1])[1] - 1;
        return { type: 'rect', shape: { x: from[0], y: from[1] - height / 2, width: Math.max(1, to[0] - from[0] - 0.5), height }, style: { fill: api.visual('color') } };
      },
      markLine: { symbol: 'none', silent: true, label: { show: false }, data: marks() },
    }],
  });
  return { series: names.length, painted: painted(made) };
}

function none(panel, body) {
  body.innerHTML = '';
  const text = document.createElement('div');
  text.className = 'none';
  text.textContent = panel.fieldConfig.defaults.noValue || '';
  body.append(text);
  return { series: 0, painted: text.textContent.length };
}

function number(panel, body) {
  const defaults = panel.fieldConfig.defaults, result = DATA.results[panel.id].A;
  if (!result.length) return none(panel, body);
  const value = Number(result[0].value[1]), hit = mapped(value, defaults.mappings);
  const text = document.createElement('div');
  text.className = 'stat';
  text.textContent = hit ? hit.text : format(value, defaults.unit, defaults.decimals);
  text.style.color = color(hit ? hit.color : stepColor(value, defaults.thresholds));
  body.append(text);
  return { series: result.length, painted: text.textContent.length };
}

// `merge`: answers with equal common labels share a row. `organize`: order, names, what is hidden.
function rows(panel) {
  const found = [];
  for (const target of panel.targets) {
    for (const series of DATA.results[panel.id][target.refId]) {
      const entry = { ...series.metric, [`Value #${target.refId}`]: Number(series.value[1]) };
      delete entry.__name__;
      const fits = (row) => Object.keys(series.metric).every((key) => row[key] === undefined || row[key] === entry[key])
        && row[`Value #${target.refId}`] === undefined;
      // A row that knows more labels than the answer is found as well, and there may be several of them.
      const same = found.filter((row) => fits(row));
      if (same.length) same.forEach((row) => Object.assign(row, entry));
      else found.push(entry);
    }
  }
  return found;
}

function grid_of(panel, body) {
  const found = rows(panel);
  if (!found.length) return none(panel, body);
  const { options } = panel.transformations.find(({ id }) => id === 'organize');
  const known = new Set(found.flatMap((row) => Object.keys(row)));
  const fields = Object.keys(options.indexByName).filter((field) => known.has(field) && !options.excludeByName[field])
    .sort((a, b) => options.indexByName[a] - options.indexByName[b]);
  const stray = [...known].filter((field) => !(field in options.indexByName) && !options.excludeByName[field]);
  if (stray.length) throw new Error(`${panel.title}: columns without a name: ${stray}`);
  const [order] = (panel.options.sortBy || []);
  if (order) {
    const field = fields.find((name) => options.renameByName[name] === order.displayName);
    found.sort((a, b) => ((a[field] ?? 0) - (b[field] ?? 0)) * (order.desc ? -1 : 1));
  }
  const table = document.createElement('table'), head = table.insertRow();
  for (const field of fields) {
    const cell = document.createElement('th');
    cell.textContent = options.renameByName[field];
    head.append(cell);
  }
  for (const row of found) {
    const line = table.insertRow();
    for (const field of fields) {
      const own = Object.fromEntries(panel.fieldConfig.overrides.filter(({ matcher }) => matcher.options === options.renameByName[field])
        .flatMap(({ properties }) => properties.map(({ id, value }) => [id, value])));
      const cell = line.insertCell(), value = row[field];
      if (typeof value !== 'number') { cell.textContent = value ?? ''; continue; }
      const hit = mapped(value, own.mappings);
      cell.textContent = hit ? hit.text : format(value, own.unit || 'none', own.decimals);
      if (own['custom.cellOptions']) {
        const fill = hit ? hit.color : stepColor(value, own.thresholds);
        cell.style.background = color(fill);
        if (fill && fill !== 'transparent') cell.style.color = '#fff';
      }
    }
  }
  body.append(table);
  return { series: found.length, painted: table.textContent.length, cut: table.scrollWidth > body.clientWidth || table.scrollHeight > body.clientHeight };
}

// How many pixels of a chart are neither background nor grid, counted where the figures are.
function painted(made) {
  const canvas = made.getDom().querySelector('canvas'), { width, height } = canvas;
  const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  let count = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b] = [pixels[i], pixels[i + 1], pixels[i + 2]];
    if (Math.max(r, g, b) - Math.min(r, g, b) > 40) count += 1;
  }
  return count;
}

const KINDS = { stat: number, table: grid_of, timeseries: lines, 'state-timeline': lanes, heatmap: distribution };

function draw() {
  const { board } = DATA, root = document.getElementById('board'), told = [];
  const header = document.querySelector('header');
  const title = document.createElement('b'), note = document.createElement('span');
  title.textContent = board.title;
  note.textContent = `Drawn by Apache ECharts ${echarts.version}, not by Grafana. ${DATA.note} Vertical lines: `
    + DATA.annotations.filter(({ enable }) => enable).map(({ name, color: c }) => `${name.toLowerCase()} (${c})`).join(', ') + '.';
  header.append(title, note);
  let bottom = 0;
  const put = (element, { x, y, w, h }, gap) => {
    Object.assign(element.style, { left: `${x * WIDTH / 24 + gap}px`, top: `${y * CELL + gap}px`, width: `${w * WIDTH / 24 - 2 * gap}px`, height: `${h * CELL - 2 * gap}px` });
    root.append(element);
    bottom = Math.max(bottom, (y + h) * CELL);
  };
  for (const panel of board.panels.flatMap((panel) => [panel, ...(panel.panels || [])])) {
    const box = document.createElement('section');
    if (panel.type === 'row') {
      box.className = 'row';
      box.textContent = panel.title + (panel.collapsed ? ' (collapsed until somebody opens it)' : '');
      put(box, panel.gridPos, 0);
      continue;
    }
    box.className = 'panel';
    const heading = document.createElement('h2'), about = document.createElement('i'), body = document.createElement('div');
    heading.textContent = panel.title;
    about.textContent = panel.gridPos.w === 24 ? panel.description.split('\n')[0].split('. ')[0] : '';
    heading.append(about);
    body.className = 'body';
    box.append(heading, body);
    put(box, panel.gridPos, 3);
    told.push({ id: panel.id, title: panel.title, ...KINDS[panel.type](panel, body) });
  }
  root.style.height = `${bottom}px`;
  console.log(`DRAWN ${JSON.stringify(told)}`);
}

try { draw(); } catch (error) { console.error(`FAILED ${error.stack}`); }
