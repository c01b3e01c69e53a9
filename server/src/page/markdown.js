// A safe subset of Markdown as DOM nodes: headings, paragraphs, lists, quotes, tables, code, emphasis and links. Model text only ever
// becomes text nodes and the `href` of links to the web; there is no way from it to markup.

import { copyAndTell, el } from './dom.js';

const FENCE = /^\s*(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Longer paragraphs stay plain, so that the time for each stays small whatever the text. */
const INLINE_LEN_MAX = 6000;

/** What is nested deeper stays as it was written. */
const DEPTH_MAX = 8;

// In this order: code, escapes, strong, emphasis, struck out, link, bare address.
const INLINE = new RegExp([
  /(?<tick>`+)(?<code>[^`]|[^`].*?[^`])\k<tick>(?!`)/,
  /\\(?<escaped>[!-/:-@[-`{-~])/,
  /\*\*(?<strong>\S|\S.*?\S)\*\*/,
  /(?<!\w)__(?<strong2>\S|\S.*?\S)__(?!\w)/,
  /\*(?<em>[^\s*]|[^\s*].*?[^\s*])\*/,
  /(?<!\w)_(?<em2>[^\s_]|[^\s_].*?[^\s_])_(?!\w)/,
  /~~(?<del>\S|\S.*?\S)~~/,
  /!?\[(?<label>[^\[\]]{0,400})\]\((?<target>[^()\s]{1,2000}(?:\([^()\s]{0,200}\))?)(?:\s+"[^"]{0,200}")?\)/,
  /(?<bare>\bhttps?:\/\/[^\s<>"'`)\]]+[^\s<>"'`)\].,;:!?])/,
].map((part) => part.source).join('|'), 'gs');

/** Shows `text` in `node`. Blocks whose source did not change keep their nodes, and with them selections and places. */
export function showMarkdown(node, text) {
  const sources = split(text);
  const old = node.blocks || [];
  node.blocks = sources.map((source, i) => {
    if (old[i]?.source === source) return old[i];
    const nodes = render(source, 0);
    const block = { source, nodes };
    if (old[i]) {
      old[i].nodes[0].before(...nodes);
      old[i].nodes.forEach((gone) => gone.remove());
    } else {
      node.append(...nodes);
    }
    return block;
  });
  old.slice(sources.length).forEach((block) => block.nodes.forEach((gone) => gone.remove()));
}

/** Sources of blocks: fenced code, or what stands between empty lines. */
function split(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length > 0) blocks.push(lines.join('\n'));
    lines = [];
    fence = null;
  };
  for (const line of text.split('\n')) {
    const mark = FENCE.exec(line);
    if (fence) {
      lines.push(line);
      if (mark && !mark[2] && mark[1].startsWith(fence)) end();
    } else if (mark) {
      end();
      fence = mark[1];
      lines.push(line);
    } else if (line.trim() === '') {
      end();
    } else {
      lines.push(line);
    }
  }
  end();
  return blocks;
}

/** The nodes of one block, at least one. `depth` counts the quotes around it. */
function render(source, depth) {
  const lines = source.split('\n');
  const fence = FENCE.exec(lines[0]);
  if (fence) return [codeBlock(lines, fence)];
  const nodes = [];
  while (lines.length > 0) nodes.push(takeNode(lines, depth));
  return nodes;
}

function takeNode(lines, depth) {
  const heading = HEADING.exec(lines[0]);
  if (heading) {
    lines.shift();
    return el(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2]));
  }
  if (RULE.test(lines[0])) {
    lines.shift();
    return el('hr');
  }
  if (QUOTE.test(lines[0]) && depth < DEPTH_MAX) {
    const quoted = takeWhile(lines, (line) => QUOTE.test(line)).map((line) => line.replace(QUOTE, ''));
    return el('blockquote', {}, split(quoted.join('\n')).flatMap((source) => render(source, depth + 1)));
  }
  if (ITEM.test(lines[0])) return list(takeWhile(lines, (line) => ITEM.test(line) || /^\s+\S/.test(line)), 0);
  if (lines.length > 1 && lines[0].includes('|') && TABLE_RULE.test(lines[1])) {
    return table(takeWhile(lines, (line) => line.includes('|') || TABLE_RULE.test(line)));
  }
  const starts = (line) => HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
  const [first, ...rest] = [lines.shift(), ...takeWhile(lines, (line) => !starts(line))];
  return el('p', {}, inline([first, ...rest].join('\n')));
}

function takeWhile(lines, test) {
  const end = lines.findIndex((line) => !test(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function codeBlock(lines, [, mark, language]) {
  const last = FENCE.exec(lines.at(-1));
  const closed = lines.length > 1 && last && !last[2] && last[1].startsWith(mark);
  const indent = /^\s*/.exec(lines[0])[0].length;
  const unindent = (line) => line.slice(Math.min(indent, /^\s*/.exec(line)[0].length));
  const code = lines.slice(1, closed ? -1 : undefined).map(unindent).join('\n');
  const copy = el('button', { type: 'button', class: 'plain', click: () => copyAndTell(code, 'Code') }, 'Copy');
  return el('figure', { class: 'code' },
    el('figcaption', {}, el('span', {}, language || 'text'), copy),
    el('pre', { tabindex: '0' }, el('code', {}, code)));
}

/** A list and the lists inside it, by indentation. */
function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(mark);
  const node = el(isOrdered ? 'ol' : 'ul', { start: isOrdered && mark !== '1.' ? parseInt(mark, 10) : undefined });
  while (lines.length > 0) {
    const item = ITEM.exec(lines.shift());
    const inner = takeWhile(lines, (line) => {
      const next = ITEM.exec(line);
      return !next || (depth < DEPTH_MAX && next[1].length > indent.length + 1);
    });
    const text = [item[3], ...takeWhile(inner, (line) => !ITEM.test(line)).map((line) => line.trim())].join('\n');
    node.append(el('li', {}, inline(text), inner.length > 0 && list(inner, depth + 1)));
  }
  return node;
}

function table([head, , ...rows]) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, '').split(/(?<!\\)\|/).map((cell) => cell.replaceAll('\\|', '|').trim());
  const row = (tag) => (line) => el('tr', {}, cells(line).map((cell) => el(tag, {}, inline(cell))));
  return el('div', { class: 'table', tabindex: '0' },
    el('table', {}, el('thead', {}, row('th')(head)), el('tbody', {}, rows.map(row('td')))));
}

/** Text with its marks, as nodes and strings. */
function inline(text, depth = 0) {
  if (text.length > INLINE_LEN_MAX || depth > DEPTH_MAX) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, match.index), inlineNode(match, depth + 1));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)].filter((node) => node !== '');
}

function inlineNode({ 0: source, groups }, depth) {
  const { code, escaped, strong, strong2, em, em2, del, label, target, bare } = groups;
  if (code !== undefined) return el('code', {}, code.replace(/^ (.*\S.*) $/s, '$1'));
  if (escaped) return escaped;
  if (strong || strong2) return el('strong', {}, inline(strong || strong2, depth));
  if (em || em2) return el('em', {}, inline(em || em2, depth));
  if (del) return el('del', {}, inline(del, depth));
  const address = bare || target;
  // Anything but the web and mail stays as it was written.
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return source;
  return el('a', { href: address, target: '_blank', rel: 'noopener noreferrer' }, bare ? bare : inline(label || address, depth));
}
