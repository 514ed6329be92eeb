'use strict';
// The page's data, and small functions that every part of the page uses. Texts from runs are never markup: they
// only ever become the text of an element.

const DATA = JSON.parse(document.getElementById('data').textContent);
const DIMENSIONS = ['run', 'model', 'evaluation', 'system', 'vector', 'norm', 'positions', 'operation'];
const WORDS = {run: 'run', model: 'model', evaluation: 'evaluation', system: 'system prompt', vector: 'vector',
  norm: 'norm', positions: 'positions', operation: 'operation'};
const MEASURES = {
  effect: {label: 'logit difference', upwards: 'effect on the logit difference', says: 'effect on the logit difference: log p(matching) − log p(not matching), less the unsteered model\u2019s',
    se: 'effect_se', low: 'effect_low', high: 'effect_high', short: 'Δ logit'},
  effect_p: {label: 'p(matching)', upwards: 'effect on p(matching)', says: 'effect on p(matching): its share of the answers’ probability, less the unsteered model\u2019s',
    se: 'effect_p_se', low: 'effect_p_low', high: 'effect_p_high', short: 'Δ p'},
  effect_headroom: {label: 'p over headroom', upwards: 'effect on p over its headroom', says: 'effect on p(matching) over the room that it had: 1 − p upwards, p downwards',
    short: 'Δ p / headroom'},
};
const NO_CHOICE = 'there is no choice evaluation here, and an effect is one on the probabilities of given answers';

const decoded = {};
function rows(name) {
  if (!(name in decoded)) {
    const table = DATA.tables[name];
    const columns = Object.entries(table.columns).map(
      ([key, column]) => [key, column.values ?? column.which.map((place) => column.different[place])]);
    decoded[name] = Array.from({length: table.length},
      (_, n) => Object.fromEntries(columns.map(([key, values]) => [key, values[n]])));
  }
  return decoded[name];
}

const keyOf = (row) => JSON.stringify(DIMENSIONS.map((name) => row[name]));
const grouped = {};
// The rows of a table that belong to one family: one vector in one setting.
function ofFamily(name, family) {
  if (!(name in grouped)) {
    grouped[name] = new Map();
    for (const row of rows(name)) {
      const key = keyOf(row);
      if (!grouped[name].has(key)) grouped[name].set(key, []);
      grouped[name].get(key).push(row);
    }
  }
  return family === null ? [] : grouped[name].get(keyOf(family)) ?? [];
}

// Every configuration of a family, over its multipliers and without one.
const configurations = (family) => ['multiplier_curves', 'without_multiplier'].flatMap((name) => ofFamily(name, family));

const single = (row) => (row.layers && row.layers.length === 1 ? row.layers[0] : null);
// Layers that are steered at once: 4, 8, 9, 10 as 4+8-10.
function place(row) {
  const runs = [];
  for (const layer of row.layers ?? []) {
    if (runs.length && layer === runs.at(-1).at(-1) + 1) runs.at(-1).push(layer);
    else runs.push([layer]);
  }
  return runs.map((run) => (run.length > 2 ? `${run[0]}-${run.at(-1)}` : run.join('+'))).join('+');
}
const different = (values) => [...new Set(values)];
const ascending = (values) => different(values).sort((a, b) => a - b);
const count = (number) => (number ?? 0).toLocaleString('en-US');
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? '' : 's'}`;
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

function number(value, places = 3) {
  if (!isNumber(value)) return value === null || value === undefined ? '–' : String(value);
  if (Number.isInteger(value)) return minus(String(value + 0));
  const small = Math.abs(value) < 0.5 * 10 ** -places;
  return minus(small ? value.toExponential(1) : value.toFixed(places));
}
// With the sign for minus, in an exponent too.
const minus = (text) => text.replaceAll('-', '−');
// With so many places and a sign, where what is left is not 0.
function rounded(value, places) {
  const text = value.toFixed(places);
  return Number(text) === 0 ? text.replace('-', '') : (value > 0 ? '+' : '') + minus(text);
}
const signed = (value, places = 2) => (isNumber(value) && value > 0 ? '+' : '') + number(value, places);
// What an operation without a multiplier is called; nothing for the others.
const nounOf = (operation) => DATA.operations[operation]?.[1];
const multiplierText = (value, operation) => (value === null ? nounOf(operation) || 'none' : (value > 0 ? '+' : '') + minus(String(value)));

// element('p', {class: 'why'}, 'words', anotherElement)
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function tableElement(header, body, {most = 300, chosen = () => false} = {}) {
  const numbers = header.map((_, column) => body.some((cells) => isNumber(cells[column])) && body.every((cells) => isNumber(cells[column]) || cells[column] === null || cells[column] === undefined));
  const head = element('tr', {}, header.map((name, column) => element('th', {scope: 'col', class: numbers[column] ? 'number' : null}, name)));
  const lines = body.slice(0, most).map((cells, line) => element('tr', {class: chosen(line) ? 'chosen' : null},
    cells.map((cell) => element('td', {class: isNumber(cell) ? 'number' : null},
      cell instanceof Node ? cell : isNumber(cell) ? number(cell) : Array.isArray(cell) ? cell.join(', ') : String(cell ?? '')))));
  const left = body.length > most ? element('p', {class: 'quiet'}, `the first ${count(most)} of ${count(body.length)} rows; the CSV has all`) : null;
  return element('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'table'},
    element('table', {}, element('thead', {}, head), element('tbody', {}, lines)), left);
}

function csvOf(name) {
  const table = DATA.tables[name], header = Object.keys(table.columns);
  const cell = (value) => {
    const text = value === null ? '' : Array.isArray(value) ? JSON.stringify(value) : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows(name).map((row) => header.map((column) => row[column]))]
    .map((cells) => cells.map(cell).join(',')).join('\n') + '\n';
}

function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], {type}));
  const link = element('a', {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// How a table is made, behind a click: the command, the SQL, the CSV, what was left out.
function sources(names) {
  return names.filter((name) => DATA.tables[name]).map((name) => {
    const table = DATA.tables[name];
    return element('div', {},
      element('h3', {}, name),
      table.note ? element('p', {class: 'quiet'}, table.note) : null,
      table.command ? element('p', {}, element('code', {}, table.command)) : null,
      element('div', {class: 'tools'}, element('button', {type: 'button', 'data-csv': name,
        onclick: () => download(`${name}.csv`, csvOf(name), 'text/csv')}, `CSV, ${plural(table.length, 'row')}`)),
      element('pre', {tabindex: 0}, (table.about ? table.about.split('\n').map((line) => `-- ${line}`.trimEnd()).join('\n') + '\n' : '') + table.sql));
  });
}
