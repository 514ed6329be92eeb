'use strict';
// Texts coloured by the stream's component along a vector at every token, and below each by a random vector's.

function projectionsSection() {
  const all = rows('projections');
  if (!all.length) return [element('p', {class: 'why'}, DATA.why.projections)];
  const places = new Map();
  for (const row of all) {
    const key = [row.run, row.vector, row.layer].join(' ');
    if (!places.has(key)) places.set(key, []);
    places.get(key).push(row);
  }
  const list = element('div', {id: 'projected', 'aria-live': 'polite'});
  const choice = element('select', {'data-filter': 'projection', onchange: () => draw()},
    [...places.entries()].map(([key, [row]]) => element('option', {value: key}, `${DATA.facts.length > 1 ? `${row.run}, ` : ''}${row.vector}, layer ${row.layer}`)));

  function coloured(tokens, shade, value) {
    return element('p', {class: 'text'}, tokens.map((row) => element('span', {
      title: `${row.token}: ${number(row[value])}${row.generated ? '' : ', prompt'}`,
      style: `background: color-mix(in srgb, var(${row[shade] > 0 ? '--plus' : '--minus'}) ${Math.round(70 * Math.abs(row[shade]))}%, transparent)`,
    }, row.token)));
  }

  function draw() {
    const found = places.get(choice.value), [first] = found;
    const texts = different(found.map((row) => row.text)).map((text) => found.filter((row) => row.text === text));
    const says = `Along ${first.vector} the mean over all tokens is ${number(first.mean)} and the standard deviation ${number(first.spread)}; along a random vector ${number(first.random_mean)} and ${number(first.random_spread)}.`;
    list.replaceChildren(element('p', {class: 'quiet'}, says), ...texts.map((tokens) => element('article', {},
      element('h3', {}, `text ${tokens[0].text}${tokens[0].steering ? `, written ${tokens[0].steering === 'unsteered' ? 'unsteered' : `under ${tokens[0].steering}`}` : ''}`),
      element('div', {class: 'pair'},
        element('div', {}, element('strong', {}, first.vector), coloured(tokens, 'shade', 'projection')),
        element('div', {}, element('strong', {}, 'random'), coloured(tokens, 'random_shade', 'random'))))));
  }

  draw();
  return [
    element('p', {class: 'quiet'}, 'The unsteered model reads each text. Blue lies above the mean of all tokens, orange below it; both columns have one scale, so what the right one shows is what any direction would.'),
    element('div', {class: 'filters'}, element('label', {hidden: places.size < 2}, 'vector and layer', choice)),
    list,
    element('details', {class: 'more'}, element('summary', {}, 'SQL, CSV'), sources(['projections'])),
  ];
}
