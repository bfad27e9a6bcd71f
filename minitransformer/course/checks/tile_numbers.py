"""Checks of exercise 06 that work on drawn figures: 06.napkin and 06.shape."""

from minitransformer.course.checking import expect, expect_equal, expect_number, expect_numbers, task
from minitransformer.roofline.tiles import (
    matmul_efficiency,
    num_tiles,
    num_waves,
    tile_efficiency,
    tile_grid,
    wave_efficiency,
)

# --- 06.napkin ------------------------------------------------------------------------------------------

NAPKIN = """A chip has **{num_sms} SMs**; each works on one tile at a time. A prefill of **{M:,} tokens**
goes through a layer of **{K:,} to {N:,}** numbers in bf16, with tiles of **{tile_m} x {tile_n}**. The same
layer in a decode step of **{batch} sequences** uses tiles of **16 x {thin_n}**."""


def draw_napkin(rng) -> dict:
    """Drawn again until both roundings cost something, there is room in the last wave, and splits help."""
    while True:
        tile_m, tile_n = rng.choice([(128, 256), (128, 128), (256, 128)])
        f = {
            "num_sms": rng.choice([58, 108, 114, 132, 144, 148]),
            "M": rng.randint(600, 9000),
            "N": rng.choice([4096, 5120, 6144, 8192, 11_008, 14_336]),
            "K": rng.choice([4096, 5120, 8192]),
            "tile_m": tile_m,
            "tile_n": tile_n,
            "batch": rng.randint(1, 17),
            "thin_n": rng.choice([64, 128, 256]),
        }
        right = napkin_numbers(f)
        edge = -f["M"] % tile_m  # rows of the last tiles that hang over
        shares = (
            tile_efficiency(f["M"], f["N"], (tile_m, tile_n)),
            wave_efficiency(right["tiles"], f["num_sms"]),
        )
        if max(shares) < 0.99 and edge < right["free_tokens"] and right["splits"] >= 2:
            return f


def napkin_numbers(f: dict) -> dict:
    """The right answers."""
    tile, sms = (f["tile_m"], f["tile_n"]), f["num_sms"]
    tiles, columns = num_tiles(f["M"], f["N"], tile), tile_grid(f["M"], f["N"], tile)[1]
    waves = num_waves(tiles, sms)
    thin = num_tiles(f["batch"], f["N"], (16, f["thin_n"]))
    return {
        "tiles": tiles,
        "waves": waves,
        "free_tokens": waves * sms // columns * tile[0] - f["M"],
        "splits": -(-9 * sms // (10 * thin)),
        "share": matmul_efficiency(f["M"], f["N"], tile, sms),
        "flops_a_byte": tile[0] * tile[1] / (tile[0] + tile[1]),
    }


@task("06.napkin", "tiles and waves on a napkin", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right, (tile_m, tile_n) = napkin_numbers(f), (f["tile_m"], f["tile_n"])
    M, N, sms, tiles = f["M"], f["N"], f["num_sms"], right["tiles"]
    thin = num_tiles(f["batch"], N, (16, f["thin_n"]))
    likely = {
        "tiles": [
            ((M // tile_m) * (N // tile_n), "The tiles at the edges count too: round up."),
            (M * N / (tile_m * tile_n), "Tiles are whole ones: round up in each direction."),
            (-(-M * N // (tile_m * tile_n)), "Round up in each direction, not the product."),
            (
                num_tiles(M, N, (tile_n, tile_m)),
                "The tile lies the other way: its first side is along the tokens.",
            ),
        ],
        "waves": [
            (tiles // sms, "The last wave counts, however few tiles it has."),
            (tiles / sms, "Waves are whole ones: the last lasts as long as the others."),
        ],
        "free_tokens": [
            (right["free_tokens"] + M, "Those are all tokens; asked is how many more there may be."),
            (-M % tile_m, "That fills the last row of tiles. The last wave has room for more rows of tiles."),
            (right["free_tokens"] + tile_m, "One row of tiles less: this one already needs another wave."),
        ],
        "splits": [
            (sms // thin, "Round up: with so many there are less than 90% of the SMs at work."),
            (-(-sms // thin), "90% of the SMs are enough."),
            (1, "Without splits there are far fewer programs than SMs."),
        ],
        "share": [
            (wave_efficiency(tiles, sms), "What hangs over the edges is computed for nothing too."),
            (tile_efficiency(M, N, (tile_m, tile_n)), "The SMs that wait in the last wave count too."),
            (100 * right["share"], "A share, not percent: 0.5 is half."),
        ],
        "flops_a_byte": [
            (2 * right["flops_a_byte"], "A number has two bytes in bf16."),
            (right["flops_a_byte"] / 2, "A multiply-add is two FLOPs."),
            (f["K"] * right["flops_a_byte"], "K falls out: both the work and the reading grow with it."),
        ],
    }
    names = ("tiles", "waves", "free_tokens", "splits")
    there = isinstance(answer, dict) and set(right) <= set(answer)
    expect(there, f"The answer should be a dict with {', '.join(right)}.")
    prefill, decode = (
        f"{M:,} tokens to {N:,} outputs on {sms} SMs",
        f"{thin} tiles of the decode step on {sms} SMs",
    )
    for name in names:
        given = decode if name == "splits" else prefill
        expect_equal(answer[name], right[name], given, likely[name], name=f'"{name}"')
    rest = {name: value for name, value in right.items() if name not in names}
    expect_numbers(answer, rest, tolerance=0.01, likely=likely)


# --- 06.shape -------------------------------------------------------------------------------------------

SHAPE = """A model of **{layers} layers** is planned for a chip with **{num_sms} SMs**, which will mostly
serve passes of **{tokens:,} tokens**, with tiles of **128 x 256**. Somebody proposes **hidden {hidden:,},
feed-forward {ffn:,}**; the tokenizer has **{words:,} words**. That makes **{weights:,} weights**, and whole
tiles and waves leave **{share:.1%}** of the peak."""

TILE = (128, 256)
HEAD, FFN_STEP, ROW_STEP = 128, 64, 8
WITHIN, AS_GOOD = 0.01, 0.005  # of the weights; how far from the best share a shape may be


def draw_shape(rng) -> dict:
    """Drawn again until another shape of equal weights is clearly better than the proposed one."""
    while True:
        hidden = rng.choice([2048, 3072, 4096])
        f = {
            "num_sms": rng.choice([108, 114, 132, 142, 148]),
            "tokens": rng.choice([1024, 1536, 2048, 3072]),
            "layers": rng.choice([24, 32, 40]),
            "hidden": hidden,
            "ffn": hidden * 11 // 4,
            "words": rng.choice([32_003, 50_257, 64_001, 100_277]),
        }
        f["weights"] = weights(f, hidden, f["ffn"], f["words"])
        f["share"] = share(f, hidden, f["ffn"], f["words"])
        if best_share(f) > f["share"] + 0.03:
            return f


def products(f: dict, hidden: int, ffn: int, vocab: int) -> list[tuple[int, int, int]]:
    """(N, K, how often) of the linear layers: q, k, v together; output; gate and up together; down; head."""
    layer = [(3 * hidden, hidden), (hidden, hidden), (2 * ffn, hidden), (hidden, ffn)]
    return [(N, K, f["layers"]) for N, K in layer] + [(vocab, hidden, 1)]


def weights(f: dict, hidden: int, ffn: int, vocab: int) -> int:
    return sum(N * K * times for N, K, times in products(f, hidden, ffn, vocab))


def share(f: dict, hidden: int, ffn: int, vocab: int) -> float:
    """Of the SMs' time in a pass, what goes into numbers that somebody asked for; padding is not."""
    useful = f["tokens"] * weights(f, hidden, ffn, f["words"])
    spent = 0
    for N, K, times in products(f, hidden, ffn, vocab):
        waves = num_waves(num_tiles(f["tokens"], N, TILE), f["num_sms"])
        spent += times * waves * f["num_sms"] * TILE[0] * TILE[1] * K
    return useful / spent


def best_share(f: dict) -> float:
    """Of all shapes that the task allows."""
    vocab = -(-f["words"] // ROW_STEP) * ROW_STEP
    best = 0.0
    for hidden in range(HEAD, 3 * f["hidden"], HEAD):
        for ffn in _ffns(f, hidden, vocab):
            best = max(best, share(f, hidden, ffn, vocab))
    return best


def _ffns(f: dict, hidden: int, vocab: int) -> list[int]:
    """Feed-forward widths that keep the weights near enough the same, between 2 and 5 hidden sizes."""
    a_step = 3 * f["layers"] * hidden * FFN_STEP
    spare = f["weights"] - weights(f, hidden, 0, vocab)
    middle, reach = round(spare / a_step), int(WITHIN * f["weights"] / a_step) + 1
    steps = (FFN_STEP * n for n in range(middle - reach, middle + reach + 1))
    return [n for n in steps if not _wrong_shape(f, hidden, n, vocab)]


def _wrong_shape(f: dict, hidden: int, ffn: int, vocab: int) -> str:
    """What the task does not allow about a shape, in words, or ""."""
    if hidden % HEAD:
        return f"hidden {hidden} is no multiple of {HEAD}, the size of a head."
    if ffn % FFN_STEP:
        return f"ffn {ffn} is no multiple of {FFN_STEP}."
    if not 2 * hidden <= ffn <= 5 * hidden:
        return f"ffn {ffn:,} is not between 2 and 5 times hidden {hidden:,}."
    if vocab < f["words"]:
        return f"vocab {vocab:,} has no room for {f['words']:,} words."
    if vocab % ROW_STEP:
        return (
            f"vocab {vocab:,} is no multiple of {ROW_STEP}: rows of the head's weights would not begin at "
            "multiples of 16 bytes, and each number would be fetched by itself. Pad it."
        )
    ratio = weights(f, hidden, ffn, vocab) / f["weights"]
    if abs(ratio - 1) > WITHIN:
        return f"the shape has {ratio:.3f} times the weights; within {WITHIN:.0%} are allowed."
    return ""


@task("06.shape", "a model shape for a chip", draw=draw_shape, question=SHAPE)
def shape(answer, rng, f):
    names = ("hidden", "ffn", "vocab", "share")
    wanted = f"The answer should be a dict with {', '.join(names)}."
    expect(isinstance(answer, dict) and set(names) <= set(answer), wanted)
    sizes = [answer[name] for name in names[:3]]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    expect(whole, f"hidden, ffn and vocab should be whole numbers above zero, but {sizes} came.")
    wrong = _wrong_shape(f, *sizes)
    expect(not wrong, f"This shape is not allowed: {wrong}")
    reached, best = share(f, *sizes), best_share(f)
    hidden, ffn, vocab = sizes
    given = f"hidden {hidden:,}, ffn {ffn:,}, vocab {vocab:,}"
    likely = [
        (_tiles_only(f, *sizes), "That is what whole tiles leave; whole waves cost as well."),
        (_mean_of_products(f, *sizes), "The products take different times: add up the time, not the shares."),
        (100 * reached, "A share, not percent: 0.5 is half."),
    ]
    expect_number(answer["share"], reached, tolerance=0.01, given=given, likely=likely, name='"share"')
    lost = max(_losses(f, *sizes).items(), key=lambda item: item[1])
    expect(
        reached >= best - AS_GOOD,
        f"With {given} a pass reaches {reached:.1%} of the peak; the best shape of equal weights reaches "
        f"{best:.1%}, and within {AS_GOOD:.1%} of it is good enough. Most of the time that is lost goes into "
        f"{lost[0]}: compare the tiles of its product with whole waves of {f['num_sms']}.",
    )


def _losses(f: dict, hidden: int, ffn: int, vocab: int) -> dict[str, float]:
    """SM-time of each product that no useful number comes of, in steps of a tile."""
    names = ("q, k, v", "the output projection", "gate and up", "down", "the head")
    losses = {}
    for name, (N, K, times) in zip(names, products(f, hidden, ffn, vocab), strict=True):
        waves = num_waves(num_tiles(f["tokens"], N, TILE), f["num_sms"])
        losses[name] = times * K * (waves * f["num_sms"] - f["tokens"] * N / (TILE[0] * TILE[1]))
    return losses


def _tiles_only(f: dict, hidden: int, ffn: int, vocab: int) -> float:
    useful = f["tokens"] * weights(f, hidden, ffn, f["words"])
    spent = sum(
        times * num_tiles(f["tokens"], N, TILE) * TILE[0] * TILE[1] * K
        for N, K, times in products(f, hidden, ffn, vocab)
    )
    return useful / spent


def _mean_of_products(f: dict, hidden: int, ffn: int, vocab: int) -> float:
    shares = [
        matmul_efficiency(f["tokens"], N, TILE, f["num_sms"]) for N, *_ in products(f, hidden, ffn, vocab)
    ]
    return sum(shares) / len(shares)
