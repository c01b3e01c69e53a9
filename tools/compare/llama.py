"""llama.cpp through the C API of llama-cpp-python: the jobs of `perilune bench-engine`, on the same token ids."""

import math
import resource
import time

import llama_cpp
import numpy as np

DECODE_STEPS = 32


@llama_cpp.llama_log_callback
def silent(_level, _text, _data):
    pass


def prompt(first, length, vocab):
    return [((first + i) * 7919 + 13) % vocab for i in range(length)]


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Llama:
    """Greedy; the KV cache in f16 or, where asked for, f32; one context for all jobs."""

    def __init__(self, path, threads, max_len, max_sequences, chunk=512, kv_type=llama_cpp.GGML_TYPE_F16):
        llama_cpp.llama_log_set(silent, None)
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        model = llama_cpp.llama_model_default_params()
        model.use_mmap = False
        model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        if not self.model:
            raise RuntimeError(f"llama.cpp did not load {path}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max = max_len * max_sequences, max_sequences
        context.n_batch = context.n_ubatch = chunk
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = kv_type
        context.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.load_seconds = time.perf_counter() - start
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.chunk = chunk
        self.batch = llama_cpp.llama_batch_init(chunk, 0, 1)
        # Prompts that are in the context, and the token after each.
        self.prompts, self.after = None, []

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def step(self, rows):
        """Rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        # The work may still be under way.
        llama_cpp.llama_synchronize(self.context)

    def logits(self, row):
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), shape=(self.vocab,))

    def read_prompt(self, sequence, tokens, all_logits=None):
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            last = len(tokens) - start - 1
            rows = [(t, start + i, sequence, all_logits is not None or i == last) for i, t in enumerate(part)]
            self.step(rows)
            if all_logits is not None:
                all_logits.extend(self.logits(i).copy() for i in range(len(part)))
        return int(np.argmax(self.logits(len(part) - 1)))

    def run(self, job):
        """Returns tokens, seconds, CPU-seconds and what was said: greedy tokens, or pairs of log-probability and rank."""
        memory = llama_cpp.llama_get_memory(self.context)
        kind, size = job.split(":")
        if kind == "decode":
            num_sequences, context_len = map(int, size.split("@"))
            if self.prompts == size:
                # As ours: what the run before left is cut off behind the prompts.
                for sequence in range(num_sequences):
                    llama_cpp.llama_memory_seq_rm(memory, sequence, context_len, -1)
            else:
                llama_cpp.llama_memory_clear(memory, False)
                prompts = (prompt(s, context_len, self.vocab) for s in range(num_sequences))
                self.after = [self.read_prompt(s, tokens) for s, tokens in enumerate(prompts)]
                self.prompts = size
            return num_sequences * DECODE_STEPS, *timed(lambda: self.decode(self.after, context_len))
        llama_cpp.llama_memory_clear(memory, False)
        self.prompts = None
        if kind == "prefill":
            tokens = prompt(0, int(size), self.vocab)
            return len(tokens), *timed(lambda: [self.read_prompt(0, tokens)])
        return self.logprobs(int(size))

    def decode(self, tokens, context_len):
        said = []
        for step in range(DECODE_STEPS):
            self.step([(token, context_len + step, s, True) for s, token in enumerate(tokens)])
            tokens = [int(np.argmax(self.logits(s))) for s in range(len(tokens))]
            said.extend(tokens)
        return said

    def logprobs(self, length):
        tokens, logits = prompt(0, length, self.vocab), []
        self.read_prompt(0, tokens, logits)
        found = []
        for row, target in zip(logits, tokens[1:]):
            top = row.max()
            logprob = float(row[target] - top - math.log(np.exp((row - top).astype(np.float64)).sum()))
            found.append((logprob, int((row > row[target]).sum()) + 1))
        return length, 0.0, 0.0, found


def timed(work):
    start, cpu = time.perf_counter(), cpu_seconds()
    said = work()
    return time.perf_counter() - start, cpu_seconds() - cpu, said


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


