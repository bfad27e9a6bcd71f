"""The check of 10.napkin: what is sent, how long that takes beside the prefill, and the ratio of machines."""

from minitransformer.course.checking import expect_numbers, task

NAPKIN = """A model of **{billions} billion weights** has **{layers} layers** with **{kv_heads} key/value
heads of {head_dim}** and keeps its cache in **{bits} bits**. A prefill machine reaches **{tflops} TFLOP/s**.
A prompt of **{prompt:,} tokens** arrives, of which the decode side has **{cached:,}** in its prefix cache;
the prefill side has none of it. The link between the two carries **{gbps} Gb/s**.

On average prompts of this service have **{isl:,} tokens** and answers **{osl:,}**; a prefill machine reads
**{prefill_rate:,} tokens a second**, and a decode machine makes **{decode_rate:,}**."""


def draw_napkin(rng) -> dict:
    """Drawn again until the answers stay apart from what likely slips give."""
    while True:
        layers, billions = rng.choice([(28, 3), (32, 8), (36, 8), (48, 14), (64, 32), (80, 70)])
        prompt = rng.randint(3000, 16000)
        f = {
            "billions": billions,
            "layers": layers,
            "kv_heads": rng.choice([4, 8]),
            "head_dim": rng.choice([64, 128]),
            "bits": rng.choice([8, 16]),
            "tflops": rng.choice([150, 250, 400, 600]),
            "prompt": prompt,
            "cached": 16 * rng.randint(20, prompt // 40),
            "gbps": rng.choice([10, 25, 50, 100, 200, 400]),
            "isl": rng.randint(300, 9000),
            "osl": rng.randint(100, 2000),
            "prefill_rate": 1000 * rng.randint(8, 60),
            "decode_rate": 100 * rng.randint(15, 60),
        }
        share = napkin_numbers(f)["link_share"]
        if 3 < share < 300 and abs(share - 100) > 15:
            return f


def napkin_numbers(f: dict) -> dict:
    new = f["prompt"] - f["cached"]
    sent = new * 2 * f["layers"] * f["kv_heads"] * f["head_dim"] * f["bits"] // 8
    transfer = 8e3 * sent / (f["gbps"] * 1e9)
    prefill = 1e3 * 2 * f["billions"] * 1e9 * f["prompt"] / (f["tflops"] * 1e12)
    layer_link, layer_compute = transfer / f["layers"], prefill / f["layers"]
    return {
        "sent_bytes": sent,
        "transfer_ms": transfer,
        "prefill_ms": prefill,
        "link_share": 100 * transfer / prefill,
        "waits_ms": layer_link + (f["layers"] - 1) * max(0.0, layer_link - layer_compute),
        "machine_ratio": f["isl"] * f["decode_rate"] / (f["osl"] * f["prefill_rate"]),
    }


@task("10.napkin", "a hand-over on a napkin", draw=draw_napkin, question=NAPKIN)
def napkin(answer, rng, f):
    right = napkin_numbers(f)
    new = f["prompt"] - f["cached"]
    whole, transfer = f["prompt"] / new, right["transfer_ms"]
    likely = {
        "sent_bytes": [
            (right["sent_bytes"] * whole, "What the decode side has cached does not travel."),
            (right["sent_bytes"] / 2, "Keys and values both travel."),
            (right["sent_bytes"] / f["layers"], "In every layer."),
            (right["sent_bytes"] * 8, "Bits for bytes."),
        ],
        "transfer_ms": [
            (transfer / 8, "A link's Gb/s are bits."),
            (transfer / 1e3, "In milliseconds."),
            (transfer * 1.024**3, "A link's giga is 10⁹."),
        ],
        "prefill_ms": [
            (right["prefill_ms"] / 2, "A token costs two FLOPs a weight: multiply and add."),
            (
                right["prefill_ms"] / whole,
                "The prefill side has none of it cached: it computes the whole prompt.",
            ),
            (right["prefill_ms"] / 1e3, "In milliseconds."),
        ],
        "link_share": [
            (right["link_share"] / 100, "In percent."),
            (1e4 / right["link_share"], "Transfer over prefill, not prefill over transfer."),
        ],
        "waits_ms": [
            (transfer, "Layers leave while later ones are computed: not all of it is waited for."),
            (
                transfer / f["layers"],
                "The link takes longer for a layer than the machine does: layers queue.",
            ),
            (max(0.0, transfer - right["prefill_ms"]), "The last layer can only leave when it is computed."),
        ],
        "machine_ratio": [
            (1 / right["machine_ratio"], "Prefill over decode machines."),
            (f["isl"] / f["osl"], "The two kinds of machine make tokens at different rates."),
            (
                f["isl"] * f["prefill_rate"] / (f["osl"] * f["decode_rate"]),
                "A faster machine needs fewer of its kind: divide the tokens by the rate.",
            ),
        ],
    }
    likely["waits_ms"] = [(v, why) for v, why in likely["waits_ms"] if abs(v / right["waits_ms"] - 1) > 0.05]
    expect_numbers(answer, right, tolerance=0.02, units=dict.fromkeys(right, ""), likely=likely)
