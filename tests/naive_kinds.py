"""Every kind of thought one row at a time, without a cache, as its authors state it.

Nothing is shared with the package. A way of thinking is given as plain functions on one hidden
state h (D,) and one row of logits (V,); the loop recomputes the whole row for each of them.
"""

from __future__ import annotations

import math

import torch


def embed(model, ids):
    return model.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.long))


def read(model, columns):
    """Final hidden state and logits at the last of `columns`, a list of vectors."""
    out = model(
        inputs_embeds=torch.stack(columns)[None], output_hidden_states=True, use_cache=False
    )
    return out.hidden_states[-1][0, -1], out.logits[0, -1]


def mixture(model, *, temperature=0.6, top_k=30, top_p=0.95, min_p=0.001, tokens=10):
    def vector(h, logits, step):
        p = torch.softmax(logits / temperature, 0).tolist()
        likeliest = sorted(range(len(p)), key=lambda token: -p[token])[:top_k]
        weights = _shares({token: p[token] for token in likeliest})
        kept, total = {}, 0.0
        for token in likeliest:
            if total < top_p:
                kept[token] = weights[token]
            total += weights[token]
        weights = _shares(kept)
        largest = max(weights.values())
        weights = _shares({t: w for t, w in weights.items() if w >= min_p * largest})
        few = sorted(weights, key=lambda token: -weights[token])[:tokens]
        weights = _shares({token: weights[token] for token in few})
        return sum(weight * embed(model, [token])[0] for token, weight in weights.items())

    return vector


def _shares(weights):
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def realigned(model, *, ridge=False):
    rows = embed(model, range(model.get_input_embeddings().weight.shape[0]))
    norm = sum(float(row.norm()) for row in rows) / len(rows)
    matrix = torch.eye(rows.shape[1])
    if ridge:
        out = model.get_output_embeddings().weight.double()
        inverse = torch.linalg.inv(out.T @ out + 1e-5 * torch.eye(out.shape[1]))
        matrix = (inverse @ out.T @ rows.double()).float()

    def vector(h, logits, step):
        z = h @ matrix
        return z * norm / z.norm().clamp(min=1e-6)

    return vector


def projected(map_weights):
    """CODI: two linear layers around a GELU, and LayerNorm where the file has it."""
    first, second, norm = map_weights["linear_1"], map_weights["linear_2"], map_weights.get("norm")

    def vector(h, logits, step):
        wide = first[0] @ h + first[1]
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        z = second[0] @ wide + second[1]
        return z if norm is None else _layer_norm(z, *norm)

    return vector


def gaussian(map_weights, *, scale, noise=None):
    """CoLaR: the mean, and `noise(thought number)` times the standard deviation, times the scale.

    Called once a thought, and for a moved hidden state with the same noise.
    """
    first, second = map_weights["fc_1"], map_weights["fc_2"]

    def vector(h, logits, step):
        wide = first[0] @ h + first[1]
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        wide = _layer_norm(second[0] @ wide + second[1], *map_weights["norm"])
        z = map_weights["mean"][0] @ wide + map_weights["mean"][1]
        if noise is not None:
            log_std = map_weights["log_std"][0] @ wide + map_weights["log_std"][1]
            z = z + torch.exp(log_std) * noise(step)
        return scale * z

    return vector


def _layer_norm(x, weight, bias):
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + 1e-5) * weight + bias


def continuous(model):
    return lambda h, logits, step: h


def entropy(logits, temperature):
    p = torch.softmax(logits.double() / temperature, 0)
    return -sum(float(q) * math.log(float(q)) for q in p if q > 0)


class Stops:
    """When a row ends: by its next token, or by the entropy for some steps in a row."""

    def __init__(self, *, end=None, low=None, high=None, temperature=1.0):
        self.end, self.low, self.high, self.temperature = end, low, high, temperature
        self.held = {"low": 0, "high": 0}

    def __call__(self, logits, step):
        if self.end is not None and int(logits.argmax()) == self.end:
            return True
        bits = entropy(logits, self.temperature)
        for name, rule in (("low", self.low), ("high", self.high)):
            if rule is not None:
                threshold, patience = rule
                holds = bits < threshold if name == "low" else bits > threshold
                self.held[name] = self.held[name] + 1 if holds else 0
                if self.held[name] >= patience:
                    return True
        return False


def think(
    model,
    context,
    vector,
    *,
    cap,
    opening=(),
    closing=(),
    stops=None,
    memory_rate=0.0,
    references=None,
    step_size=0.0,
    search_steps=1,
    gradient="detached",
    min_thoughts=0,
    noise=None,
):
    """All columns before the text, and the thoughts; `through` is for maps that are no identity."""

    def state(reference, z):
        return read(reference, [*embed(reference, read_ids), *thoughts, z])[0]

    read_ids = [*context, *opening]
    thoughts = []
    for _ in range(cap):
        columns = [*embed(model, read_ids), *thoughts]
        h, logits = read(model, columns)
        if stops is not None and len(thoughts) >= min_thoughts and stops(logits, len(thoughts)):
            break
        first = vector(h, logits, len(thoughts))
        mixed = first
        if thoughts:
            mixed = memory_rate * thoughts[-1] + (1 - memory_rate) * first

        def fed(delta, h=h, logits=logits, first=first, mixed=mixed):
            return mixed + vector(h + delta, logits, len(thoughts)) - first

        def slope_at(delta, h=h, fed=fed):
            with torch.enable_grad():
                leaf = delta.detach().requires_grad_()
                good, bad = (state(other, fed(leaf)) for other in references)
                loss = ((h + leaf - good) ** 2).mean() - ((h + leaf - bad) ** 2).mean()
                return torch.autograd.grad(loss, leaf)[0]

        z, delta = mixed, torch.zeros_like(h)
        for _ in range(search_steps if step_size else 0):
            if gradient == "through":
                delta = delta - step_size * slope_at(delta)
            else:
                good, bad = (state(other, z) for other in references)
                delta = delta + 2 * step_size / len(h) * (good - bad)
            z = fed(delta)
        if noise is not None:
            z = z + noise(len(thoughts))
        thoughts.append(z)
    return [*embed(model, read_ids), *thoughts, *embed(model, closing)], thoughts


def more_confident(model, before, thoughts, after, draw, *, steps, step_size=0.05, noise=0.1):
    """LTPO on the thoughts between `before` and `after`, lists of vectors; `draw(i)` is (T, D)."""
    z = torch.stack(thoughts)
    best, best_reward = None, -math.inf
    for i in range(steps):
        sigma = noise * 0.99**i
        eps = sigma * draw(i)
        columns = torch.stack([*before, *(z + eps), *after[:1]])
        logits = model(inputs_embeds=columns[None], use_cache=False).logits[0, len(before) :]
        p = torch.softmax(logits, -1)
        rewards = [-(1 / 10) * sum(math.log(q) for q in sorted(row.tolist())[-10:]) for row in p]
        reward = sum(rewards) / len(rewards)
        z = z + step_size * reward * eps / sigma**2
        if reward > best_reward:
            best, best_reward = z, reward
    return list(best)


def log_likelihood(model, columns, continuation):
    total = 0.0
    for position, token in enumerate(continuation):
        _, logits = read(model, [*columns, *embed(model, continuation[:position])])
        total += float(torch.log_softmax(logits, 0)[token])
    return total


def greedy(model, columns, num_tokens, *, end):
    written = []
    while len(written) < num_tokens:
        _, logits = read(model, [*columns, *embed(model, written)])
        written.append(int(logits.argmax()))
        if written[-1] == end:
            break
    return written
