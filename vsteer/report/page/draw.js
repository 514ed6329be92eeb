'use strict';
// A figure on the page: how Vega draws it in the theme's colours, updates it and saves it.

const RUNTIME = {specs: null, ready: null};

async function loadRuntime() {
  const packed = Uint8Array.from(atob(document.getElementById('runtime').textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  // a bundle of plain statements, which sets window.vega and window.SPECS
  (0, eval)(await new Response(stream).text());
  RUNTIME.specs = window.SPECS;
}

const THEME = ['page', 'card', 'ink', 'quiet', 'faint', 'plus', 'minus', 'zero', 'band', 'onfull'];
function colours(of) {
  const style = getComputedStyle(of);
  return Object.fromEntries(THEME.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function viewOf(spec, given, palette, options) {
  const made = inColours({...withLegends(spec, given), background: 'transparent'}, palette);
  const view = new window.vega.View(window.vega.parse(made, configOf(palette)), {renderer: 'svg', logLevel: 1, hover: true, ...options.view});
  apply(view, spec, given);
  return view.width(options.width);
}

function apply(view, spec, given) {
  for (const name of spec.data.filter((each) => !each.source).map((each) => each.name)) view.data(name, (given.data[name] ?? []).map((row) => ({...row})));
  for (const [name, value] of Object.entries(given.signals ?? {})) view.signal(name, value);
}

// The points' fields that only serve drawing, and the names of the others in a table.
const HIDDEN = ['chosen', 'order', 'marked', 'rank', 'sign', 'why', 'top', 'lonely', 'labelled', 'words'];
const SHOWN_AS = {y: 'value', low: 'from', high: 'to', se: 'standard error', place: 'layers', relative_norm: 'injected norm / stream norm', mass: 'total mass', wrong: 'share the wrong way'};

class Figure {
  constructor(name, onPick) {
    this.name = name;
    this.definition = FIGURES[name];
    this.view = null;
    this.given = null;
    this.heading = element('h3');
    this.about = element('p', {class: 'axis about'});
    this.axis = element('p', {class: 'axis'});
    this.words = element('p');
    this.chart = element('div', {class: 'chart', role: 'img'}, this.inner = element('div'));
    this.why = element('p', {class: 'why', hidden: true});
    this.details = element('details', {ontoggle: () => this.fill()}, element('summary', {}, 'SQL, CSV, table'), this.inside = element('div'));
    const save = (kind) => element('button', {type: 'button', 'data-save': kind, onclick: () => this.save(kind)}, `save ${kind.toUpperCase()}`);
    this.tools = element('div', {class: 'tools'}, save('svg'), save('png'), this.details);
    this.box = element('figure', {id: `figure-${name}`, 'data-figure': name},
      element('figcaption', {}, this.heading), this.about, this.axis, this.chart, this.why, element('figcaption', {}, this.words), this.tools);
    if (this.definition.pick) {
      this.chart.classList.add('pick');
      this.onPick = onPick;
    }
    new ResizeObserver(() => this.resize()).observe(this.chart);
  }

  get spec() { return RUNTIME.specs[this.definition.spec ?? (this.name.startsWith('asymmetry') ? 'asymmetry' : this.name)]; }

  show(state) {
    this.state = {...state};
    this.given = this.definition.give(state);
    const none = typeof this.given === 'string';
    this.box.dataset.state = none ? 'empty' : 'drawn';
    for (const part of [this.about, this.axis, this.chart, this.words, this.tools]) part.hidden = none;
    this.why.hidden = !none;
    this.heading.hidden = none;
    if (none) {
      this.why.textContent = this.given;
      this.view?.finalize();
      this.view = null;
      this.inner.replaceChildren();
      return;
    }
    this.heading.textContent = this.given.title;
    this.about.textContent = aboutOf(this.name, state);
    this.axis.textContent = axisOf(this.name, state);
    this.words.textContent = this.given.says.filter(Boolean).join(' ');
    this.chart.setAttribute('aria-label', `${this.given.title}. ${this.words.textContent} The numbers are in the table below the figure.`);
    if (this.details.open) this.fill();
    if (this.view === null || String(this.given.without) !== this.without) this.draw();
    else {
      apply(this.view, this.spec, this.given);
      this.view.runAsync();
    }
  }

  draw(palette = colours(document.documentElement)) {
    this.view?.finalize();
    this.width = this.chart.clientWidth;
    this.without = String(this.given.without);
    this.view = viewOf(this.spec, this.given, palette, {width: this.width, view: {container: this.inner}});
    this.view.tooltip((handler, event, item, value) => showTip(event, value));
    if (this.onPick) this.view.addEventListener('click', (event) => this.pick(event));
    this.view.runAsync();
  }

  // The layer under the pointer, wherever in the figure it is.
  pick(event) {
    const box = this.chart.querySelector('.root .background').getBoundingClientRect();
    const layer = Math.round(this.view.scale('x').invert(event.clientX - box.left));
    this.onPick(layer);
  }

  again() {
    if (this.view !== null) this.draw();
  }

  // At once, since printing waits for nothing.
  print() {
    if (this.view === null) return;
    this.draw(lightColours());
    this.view.run();
  }

  resize() {
    if (this.view === null || this.chart.hidden || !this.chart.clientWidth || this.chart.clientWidth === this.width) return;
    this.width = this.chart.clientWidth;
    this.view.width(this.width).runAsync();
  }

  fill() {
    if (!this.details.open || typeof this.given === 'string') return;
    const drawn = this.given.data.rows;
    const header = Object.keys(drawn[0] ?? {}).filter((name) => !HIDDEN.includes(name) && drawn.some((row) => row[name] !== null && row[name] !== undefined && typeof row[name] !== 'object'));
    this.inside.replaceChildren(element('h3', {}, 'what is drawn'), tableElement(header.map((name) => SHOWN_AS[name] ?? name), drawn.map((row) => header.map((name) => row[name]))), ...sources(this.definition.tables));
  }

  // As a figure that stands alone: light, on white, with its title and in words what it shows.
  async save(kind) {
    const spec = standAlone(this.name, this.state, this.given, this.spec, lightColours()), name = fileOf(this.name, this.state);
    const view = new window.vega.View(window.vega.parse(spec), {renderer: 'none', logLevel: 1});
    await view.runAsync();
    if (kind === 'svg') download(`${name}.svg`, await view.toSVG(), 'image/svg+xml');
    else {
      const canvas = await view.toCanvas(3);
      canvas.toBlob((blob) => download(`${name}.png`, blob, 'image/png'));
    }
    view.finalize();
    this.box.dataset.saved = kind;
  }
}

function lightColours() {
  const light = document.getElementById('light');
  light.hidden = false;
  const palette = colours(light);
  light.hidden = true;
  return palette;
}

function showTip(event, value) {
  const tip = document.getElementById('tip');
  tip.hidden = value === null || value === undefined || value === '';
  if (tip.hidden) return;
  const known = Object.entries(value).filter(([, each]) => each !== null && each !== undefined && !['null', 'undefined', 'NaN', ''].includes(String(each)));
  tip.replaceChildren(element('dl', {}, known.flatMap(([name, each]) => [element('dt', {}, name), element('dd', {}, String(each))])));
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}
