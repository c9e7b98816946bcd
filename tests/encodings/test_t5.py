import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import T5Bias, TokenLayout
from posenc.functional.buckets import log_bucket, t5_bucket


def build(layout, **options):
    options = {"num_buckets": 8, "max_distance": 5, **options}
    return oracles.randomize(T5Bias(TokenLayout(*layout), 2, dtype=torch.float64, **options))


def bias_of(encoding, layout):
    x = torch.zeros(1, encoding.num_heads, layout.num_tokens, 4, dtype=torch.float64)
    return encoding(x, x, layout)[0].dense()[0]


@pytest.mark.parametrize("name", golden_cases.names("t5_buckets"))
def test_buckets_equal_the_published_code(name):
    golden = golden_cases.case(name)
    count, longest = (golden.hyperparameters[key] for key in ("num_buckets", "max_distance"))
    offset = golden["offset"]
    assert torch.equal(t5_bucket(offset, count, longest), golden["bidirectional"])
    # The causal rule, which images have no use for, is the same rule for half of the offsets.
    causal = log_bucket((-offset).clamp(min=0), count, longest)
    assert torch.equal(causal, golden["causal"])


@pytest.mark.parametrize("name", golden_cases.names("t5_buckets"))
def test_on_one_row_it_is_the_bias_of_t5(name):
    golden = golden_cases.case(name)
    tokens = (len(golden["offset"]) + 1) // 2
    encoding, layout = build((1, tokens, 0), **golden.hyperparameters), TokenLayout(1, tokens)
    of_offset = dict(zip(golden["offset"].tolist(), golden["bidirectional"], strict=True))
    where = torch.tensor([[of_offset[j - i] for j in range(tokens)] for i in range(tokens)])
    expected = encoding.table_columns[:, where] + encoding.table_rows[:, 0, None, None]
    torch.testing.assert_close(bias_of(encoding, layout), expected, atol=0, rtol=0)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    t5 = build(layout)

    def entry(i, j, q, k):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(1, 2, dtype=torch.float64)
        rows, columns = (oracles.t5_bucket(d, 8, 5) for d in offset)
        return (t5.table_rows[:, rows] + t5.table_columns[:, columns])[None]

    oracle_checks.equals(t5, layout, oracle_checks.with_bias(entry, layout))


def test_orientation():
    """The bucket of row offset +1 (5) is read where the key is one row below the query."""
    t5 = T5Bias(TokenLayout(2, 3), 1, num_buckets=8, max_distance=5)
    with torch.no_grad():
        t5.table_rows[:, 5] = 1.0
    found = bias_of(t5, TokenLayout(2, 3))[0].reshape(2, 3, 2, 3).nonzero()
    assert {(i, k) for i, _, k, _ in found.tolist()} == {(0, 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buckets": 7}, "T5Bias: num_buckets must be even and at least 4, got 7"),
        ({"num_buckets": 2}, "num_buckets must be even and at least 4, got 2"),
        ({"num_buckets": 0}, "num_buckets must be a positive int, got 0"),
        ({"max_distance": 8.0}, r"max_distance must be a positive int, got 8\.0"),
        ({"max_distance": 8}, r"more than a quarter of num_buckets.* \(8\), got 8"),
    ],
)
def test_refuses_numbers_without_a_rule(options, message):
    with pytest.raises(ValueError, match=message):
        T5Bias(TokenLayout(2, 3), 2, **options)
