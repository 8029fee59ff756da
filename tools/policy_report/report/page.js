'use strict';
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find('data').textContent);
  const collator = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });
  data.category = data.labels.map((labels) => labels.map((l) => data.classes[l]).join(', '));
  data.prediction = data.predicted.map((label) => data.classes[label]);
  const searched = data.video.map((video, i) =>
    [video, data.category[i], data.prediction[i]].join('\n').toLowerCase());
  const words = { '1': '✓', '0': '✗', '-1': '–' }; // others are shares of what is to be found
  const everything = data.video.map((_, i) => i);
  const orders = new Map(); // order of all videos, by column and direction
  const state = { key: 'ratio', rising: false, page: 0, rows: everything };

  // A column is sorted once; a filter then only picks from its order. Equals stay as they came.
  function order(key, rising) {
    const name = key + rising;
    if (!orders.has(name)) {
      const column = data[key];
      const sign = rising ? 1 : -1;
      const compare = typeof column[0] === 'string'
        ? (a, b) => sign * collator.compare(column[a], column[b])
        : (a, b) => sign * (column[a] - column[b]);
      orders.set(name, everything.slice().sort(compare));
    }
    return orders.get(name);
  }

  function select() {
    const category = find('category').value;
    const correct = find('correct').value;
    const text = find('text').value.trim().toLowerCase();
    state.rows = order(state.key, state.rising).filter((i) =>
      (category === '' || data.labels[i].includes(Number(category))) &&
      (correct === '' || Math.floor(data.correct[i]) === Number(correct)) &&
      (text === '' || searched[i].includes(text)));
    state.page = 0;
    draw();
  }

  function cell(row, text, kind) {
    const made = row.insertCell();
    made.textContent = text; // never HTML: names come from anywhere
    if (kind) made.className = kind;
    return made;
  }

  function drawRow(body, i) {
    const row = body.insertRow();
    cell(row, data.video[i]);
    cell(row, data.category[i]);
    cell(row, data.prediction[i]);
    cell(row, data.score[i].toFixed(3), 'number');
    const correct = data.correct[i];
    const share = words[correct] ?? (100 * correct).toFixed(0) + ' %';
    cell(row, share, correct >= 0 && correct < 1 ? 'miss' : 'hit');
    const compute = cell(row, (100 * data.ratio[i]).toFixed(1) + ' %', 'number');
    const bar = document.createElement('span');
    bar.className = 'bar';
    bar.appendChild(document.createElement('i')).style.width = 100 * data.ratio[i] + '%';
    compute.prepend(bar);
    cell(row, data.gmacs[i].toPrecision(4), 'number');
    cell(row, data.overhead[i].toPrecision(2), 'number');
  }

  function draw() {
    const size = Number(find('size').value);
    const pages = Math.max(Math.ceil(state.rows.length / size), 1);
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const body = document.createElement('tbody');
    body.id = 'rows';
    const start = state.page * size;
    state.rows.slice(start, start + size).forEach((i) => drawRow(body, i));
    find('rows').replaceWith(body);
    find('count').textContent = state.rows.length.toLocaleString('en') + ' of ' +
      everything.length.toLocaleString('en') + ' videos';
    find('where').textContent = 'Page ' + (state.page + 1) + ' of ' + pages;
    find('first').disabled = find('previous').disabled = state.page === 0;
    find('next').disabled = find('last').disabled = state.page === pages - 1;
    for (const head of document.querySelectorAll('th')) {
      const sorted = head.dataset.key === state.key;
      head.setAttribute('aria-sort', sorted ? (state.rising ? 'ascending' : 'descending') : 'none');
    }
  }

  function turn(to) {
    state.page = to;
    draw();
  }

  for (const head of document.querySelectorAll('th')) {
    head.firstElementChild.addEventListener('click', () => {
      const { key } = head.dataset;
      // Names start with A, numbers with the highest.
      state.rising = key === state.key ? !state.rising : typeof data[key][0] === 'string';
      state.key = key;
      select();
    });
  }
  for (const button of document.querySelectorAll('[data-category]')) {
    button.addEventListener('click', () => {
      find('filters').reset();
      find('category').value = button.dataset.category;
      select();
      find('videos').scrollIntoView();
    });
  }
  find('filters').addEventListener('input', select);
  find('filters').addEventListener('reset', () => setTimeout(select)); // once the fields are empty
  find('filters').addEventListener('submit', (event) => event.preventDefault());
  find('size').addEventListener('input', () => turn(0));
  find('first').addEventListener('click', () => turn(0));
  find('previous').addEventListener('click', () => turn(state.page - 1));
  find('next').addEventListener('click', () => turn(state.page + 1));
  find('last').addEventListener('click', () => turn(Infinity));
  select();
})();
