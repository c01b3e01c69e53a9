// Talks to the server: lists models, sends a request, reads the answer's events, and writes a request as a curl command.

const ROUTE = 'v1/chat/completions';

/** Where a route is; the page may live behind a prefix. */
const at = (route) => new URL(route, document.baseURI).href;

export class ApiError extends Error {
  /** `status` is 0 where no answer came at all. */
  constructor(status, { message, code, param } = {}, retryAfter = 0) {
    super(message || `the server answered with status ${status}`);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

async function call(route, { key, ...options }) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(at(route), { ...options, headers, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, { message: 'the server cannot be reached' });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error, Number(response.headers.get('retry-after')) || 0);
}

export async function listModels(key) {
  const response = await call('v1/models', { key });
  return (await response.json()).data.map((model) => model.id);
}

/** Sends the request. `onHead` gets the response's headers; each part of the answer comes as one chunk. */
export async function* complete(request, { key, signal, onHead }) {
  const response = await call(ROUTE, {
    key,
    signal,
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(request),
  });
  onHead(response.headers);
  if (!response.headers.get('content-type')?.startsWith('text/event-stream')) {
    yield await response.json();
    return;
  }
  let data;
  try {
    for await (data of events(response.body)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === 'AbortError') throw error;
    if (error instanceof SyntaxError) throw new ApiError(response.status, { message: `the server sent an event that is not JSON: ${data}` });
  }
  throw new ApiError(response.status, { message: 'the stream broke off before its end' });
}

/** The data of server-sent events, whatever the borders of the chunks they come in. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      // A carriage return at the very end may be the first half of a line's end.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        if (line !== '' || data.length === 0) continue;
        yield data.join('\n');
        data = [];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export function newAnswer(model) {
  return { role: 'assistant', model, text: '', reasoning: '', calls: [], usage: null, timings: null, finish: null };
}

/** Adds a chunk, or a whole completion, to an answer. Says whether there was something to read in it. */
export function merge(answer, chunk) {
  answer.model = chunk.model || answer.model;
  answer.usage = chunk.usage || answer.usage;
  const choice = chunk.choices?.find((choice) => !choice.index);
  answer.timings = choice?.timings || chunk.timings || answer.timings;
  if (!choice) return false;
  answer.finish = choice.finish_reason || answer.finish;
  const { content, refusal, reasoning_content, reasoning, tool_calls } = choice.delta || choice.message || {};
  const text = (content || '') + (refusal || '');
  const thought = reasoning_content || reasoning || '';
  answer.text += text;
  answer.reasoning += thought;
  (tool_calls || []).forEach((call, i) => mergeCall(answer.calls, call.index ?? i, call));
  return Boolean(text || thought || tool_calls?.length);
}

function mergeCall(calls, index, call) {
  const known = (calls[index] ??= { id: '', type: 'function', function: { name: '', arguments: '' } });
  known.id ||= call.id || '';
  known.function.name += call.function?.name || '';
  known.function.arguments += call.function?.arguments || '';
}

/** A message as the API wants it. Reasoning is not sent back: chat templates drop that of earlier turns. */
function wireMessage({ role, text, pictures, calls, callId }) {
  if (role === 'tool') return { role, tool_call_id: callId, content: text };
  if (pictures?.length) {
    const parts = pictures.map(({ url }) => ({ type: 'image_url', image_url: { url } }));
    return { role, content: text ? [...parts, { type: 'text', text }] : parts };
  }
  return { role, content: text, ...(calls?.length && { tool_calls: calls }) };
}

/** What to send for an answer to `messages`; an answer that failed before its first word is left out. */
export function requestFor(messages, { model, system, fields }) {
  const said = messages.filter(({ role, text, calls }) => role !== 'assistant' || text || calls.length);
  return {
    ...(model && { model }),
    messages: [...(system ? [{ role: 'system', content: system }] : []), ...said.map(wireMessage)],
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    timings: true,
    ...fields,
  };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * The request as a command for a shell. The body goes through a here-document: pictures are longer than one argument may be, and
 * no line of indented JSON can be its end mark. The key is not written down.
 */
export function curl(request, hasKey) {
  const lines = [
    `curl -sN ${quoted(at(ROUTE))} \\`,
    "  -H 'content-type: application/json' \\",
    ...(hasKey ? ['  -H "authorization: Bearer $PERILUNE_API_KEY" \\'] : []),
    "  --data-binary @- <<'END'",
    JSON.stringify(request, null, 2),
    'END',
  ];
  return `${lines.join('\n')}\n`;
}
