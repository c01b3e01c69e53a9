// Small helpers around the DOM. Text becomes text nodes, never markup.

const SVG = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);

/** An element with attributes (functions are listeners) and children; what is `false` or absent is left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return node;
}

/** One of the symbols in page.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS(SVG, 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onClick) {
  return el('button', { type: 'button', class: 'icon', 'aria-label': label, title: label, click: onClick }, icon(name));
}

/** Also where the clipboard's own interface is missing: pages that came by plain http from another machine. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch {
      // Not allowed: the old way may be.
    }
  }
  const area = el('textarea', { class: 'unseen' });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  focused?.focus();
  if (!copied) throw new Error('the browser does not allow copying');
}

let toastTimer;

/** A short message at the bottom, with one thing to do about it where there is one. */
export function toast(text, action) {
  const button = action && el('button', { type: 'button', class: 'plain', click: () => {
    $('toast').hidden = true;
    action.run();
  } }, action.label);
  $('toast').hidden = false;
  $('toast').replaceChildren(text, ...(button ? [button] : []));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $('toast').hidden = true; }, action ? 8000 : 2500);
}

export async function copyAndTell(text, what) {
  try {
    await copyText(text);
    toast(`${what} copied`);
  } catch (error) {
    toast(`Not copied: ${error.message}`);
  }
}
