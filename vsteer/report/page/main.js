'use strict';
// The page put together: sections, the bar that chooses what is shown, the theme, and everything drawn in order.

const state = {family: null, measure: 'effect', size: null, layer: null};
const figures = [];

// A section with `when` is there only if one of these tables has rows: most runs have nothing of its kind.
const SECTIONS = [
  {id: 'run', title: 'What was run', make: runSection},
  {id: 'peaks', title: 'Peaks', live: true, make: () => peaksSection(state, choosePeak)},
  {id: 'layers', title: 'Layer curves', figures: ['layers', 'mass']},
  {id: 'heat', title: 'Layer × multiplier', figures: ['heat']},
  {id: 'dose', title: 'Dose curves', figures: ['dose']},
  {id: 'asymmetry', title: 'Sign asymmetry', says: 'Believe an asymmetry where all three agree: in probabilities alone it can be nothing but a ceiling.', side: ['asymmetry_effect', 'asymmetry_p', 'asymmetry_headroom']},
  {id: 'scaling', title: 'Scaling', figures: ['scaling']},
  {id: 'costs', title: 'What it costs: coherence and capability', two: ['coherence', 'capability']},
  {id: 'vector', title: 'Activations and directions', two: ['components', 'cosine'], side: ['cosine_row', 'worth_norm_over_stream', 'worth_class_separation', 'worth_split_half', 'worth_pair_agreement', 'worth_letter_share', 'worth_rounding']},
  {id: 'items', title: 'Single items', figures: ['slopes'], two: ['spread', 'wrong']},
  {id: 'texts', title: 'Generations', make: textsSection},
  {id: 'mechanism', title: 'Why it works: mechanism', when: ['node_scores', 'circuit_faithfulness', 'sparsity_curves'], figures: ['head_scores'], two: ['faithfulness', 'sparsity']},
  {id: 'projections', title: 'Along a vector, token by token', when: ['projections'], make: projectionsSection},
  {id: 'more', title: 'Further questions', make: moreSection},
].filter(({when}) => !when || when.some((name) => rows(name).length));

function chooseFamily(family, layer = undefined, size = undefined) {
  Object.assign(state, choiceOf(family, state.measure, layer ?? state.layer ?? undefined, size));
  buildBar();
  showAll();
}

function choosePeak(row) {
  const family = FAMILIES.find((each) => keyOf(each) === keyOf(row));
  chooseFamily(family, row.peak_layer, row.multiplier === null ? undefined : Math.abs(row.multiplier));
  document.querySelector(`[data-peak="${row.peak_layer}"]`)?.focus();
}

const layersHere = () => layersOf(state.family);

function setLayer(layer) {
  const layers = layersHere();
  if (!layers.length) return;
  state.layer = layers.reduce((near, each) => (Math.abs(each - layer) < Math.abs(near - layer) ? each : near), layers[0]);
  const slider = document.getElementById('layer');
  slider.value = layers.indexOf(state.layer);
  slider.setAttribute('aria-valuetext', `layer ${state.layer}`);
  document.getElementById('layer-shown').textContent = `layer ${state.layer}`;
  soon();
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const figure of figures) figure.show(state);
    followLayer();
  });
}

function showAll() {
  for (const section of SECTIONS.filter((each) => each.live)) {
    const open = section.body.querySelector('details')?.open ?? false;
    section.body.replaceChildren(...section.make());
    if (open) section.body.querySelector('details').open = true;
  }
  soon();
}

// One choice for each thing that varies; a choice that doesn't fit the others takes the nearest family that does.
function buildBar() {
  const bar = document.getElementById('bar'), layers = layersHere();
  const focused = document.activeElement?.dataset?.choice;
  const varying = DIMENSIONS.filter((name) => different(FAMILIES.map((each) => each[name])).length > 1);
  const selects = varying.map((name) => {
    const values = different(FAMILIES.map((each) => each[name]));
    return element('label', {}, WORDS[name], element('select', {'data-choice': name, onchange: (event) => {
      const wanted = values[event.target.selectedIndex];
      const alike = (each) => DIMENSIONS.filter((other) => each[other] === state.family[other]).length;
      chooseFamily(FAMILIES.filter((each) => each[name] === wanted).reduce((a, b) => (alike(b) > alike(a) ? b : a)), state.layer ?? undefined, state.size);
    }}, values.map((value) => element('option', {selected: value === state.family?.[name]}, value === '' ? 'none' : String(value)))));
  });
  const sizes = state.family === null ? [] : ascending(ofFamily('multiplier_curves', state.family).map((row) => Math.abs(row.multiplier)).filter((size) => size > 0));
  const sizeSelect = sizes.length < 2 ? null : element('label', {}, `|${DATA.level}|`, element('select', {'data-choice': 'size', onchange: (event) => {
    state.size = sizes[event.target.selectedIndex];
    soon();
  }}, sizes.map((size) => element('option', {selected: size === state.size}, `±${size}`))));
  const measure = state.family === null ? null : element('label', {}, 'effect on', element('select', {'data-choice': 'measure', onchange: (event) => {
    state.measure = event.target.value;
    soon();
  }}, Object.entries(MEASURES).map(([name, each]) => element('option', {value: name, selected: name === state.measure}, each.label))));
  const slider = layers.length < 2 ? null : element('label', {class: 'slider'}, element('output', {id: 'layer-shown', for: 'layer'}, `layer ${state.layer}`),
    element('input', {type: 'range', id: 'layer', 'data-choice': 'layer', min: 0, max: layers.length - 1, step: 1, value: layers.indexOf(state.layer), 'aria-label': 'layer', 'aria-valuetext': `layer ${state.layer}`,
      oninput: (event) => setLayer(layers[Number(event.target.value)])}));
  bar.replaceChildren(...[...selects, sizeSelect, measure, slider].filter(Boolean));
  bar.hidden = !bar.children.length;
  bar.classList.toggle('tall', bar.children.length > 3);
  if (focused) bar.querySelector(`[data-choice="${focused}"]`)?.focus();
}

function build() {
  document.getElementById('title').textContent = DATA.title;
  document.getElementById('state').append(...banners());
  const main = document.getElementById('main'), contents = document.getElementById('contents');
  for (const section of SECTIONS) {
    if (section.id === 'peaks') main.append(element('div', {class: 'bar', id: 'bar', role: 'group', 'aria-label': 'What the figures show'}));
    section.body = element('div');
    for (const width of ['figures', 'two', 'side'].filter((name) => section[name])) {
      const made = section[width].map((name) => new Figure(name, setLayer));
      figures.push(...made);
      section.body.append(element('div', {class: width}, made.map((figure) => figure.box)));
    }
    if (section.make && !section.live) section.body.append(...section.make().filter(Boolean));
    main.append(element('section', {id: section.id, 'aria-labelledby': `${section.id}-title`}, element('h2', {id: `${section.id}-title`}, section.title), section.says ? element('p', {class: 'quiet'}, section.says) : null, section.body));
    contents.append(element('a', {href: `#${section.id}`}, section.title));
  }
}

const THEMES = {'': 'theme: as the system', light: 'theme: light', dark: 'theme: dark'};
function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  document.getElementById('theme').textContent = THEMES[theme];
  for (const figure of figures) figure.again();
}

async function start() {
  build();
  document.getElementById('theme').addEventListener('click', () => {
    const all = Object.keys(THEMES);
    setTheme(all[(all.indexOf(document.documentElement.dataset.theme ?? '') + 1) % all.length]);
  });
  // On paper a figure is light, whatever the screen is, and as wide as the page.
  addEventListener('beforeprint', () => figures.forEach((figure) => figure.print()));
  addEventListener('afterprint', () => figures.forEach((figure) => figure.again()));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => figures.forEach((figure) => figure.again()));
  await loadRuntime();
  chooseFamily(firstFamily());
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await Promise.all(figures.filter((figure) => figure.view).map((figure) => figure.view.runAsync()));
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
}

start().catch((error) => {
  document.getElementById('state').append(element('div', {class: 'banner', role: 'alert'}, element('p', {}, `This page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`)));
  console.error(error);
});
