"""Verify Ed25519 signatures (RFC 8032) by MicroPython's long integers; about a second on a microcontroller.

SHA-512 is computed here because most ports lack it. ``feed`` feeds the watchdog. All inputs are public, so constant
time is not needed.
"""

_P = (1 << 255) - 19
_L = (1 << 252) + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)
_MASK = (1 << 64) - 1


def verify(public, message, signature, feed):
    """Return True if ``signature`` (64 bytes) of ``message`` is of the key ``public`` (32 bytes)."""
    key = _decompress(int.from_bytes(public, "little"))
    s = int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or s >= _L:
        return False
    h = int.from_bytes(sha512(signature[:32] + public + message, feed), "little") % _L
    x, y, z, t = key
    minus = (_P - x, y, z, _P - t)
    base = _base()
    both = _add(base, minus)
    point = (0, 1, 1, 0)
    for bit in range(252, -1, -1):
        point = _add(point, point)
        chosen = s >> bit & 1 | (h >> bit & 1) << 1
        if chosen:
            point = _add(point, (base, minus, both)[chosen - 1])
        feed()
    x, y, z, _ = point
    inverse = pow(z, _P - 2, _P)
    x = x * inverse % _P
    y = y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little") == signature[:32]


def _base():
    return _decompress(4 * pow(5, _P - 2, _P) % _P)


def _add(a, b):
    """Sum of two points in extended coordinates (x, y, z, t)."""
    m = (a[1] - a[0]) * (b[1] - b[0]) % _P
    n = (a[1] + a[0]) * (b[1] + b[0]) % _P
    c = 2 * a[3] * b[3] * _D % _P
    d = 2 * a[2] * b[2] % _P
    e, f, g, h = n - m, d - c, d + c, n + m
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _decompress(code):
    """The point of 255 bits of y and the sign of x; None if there is none."""
    sign = code >> 255
    y = code & ((1 << 255) - 1)
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (not x and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def sha512(data, feed):
    """SHA-512 (FIPS 180-4) of ``data``."""
    primes = _primes(80)
    constants = [_root(prime << 192, 3) & _MASK for prime in primes]
    state = [_root(prime << 128, 2) & _MASK for prime in primes[:8]]
    padded = data + b"\x80" + bytes((111 - len(data)) % 128) + (8 * len(data)).to_bytes(16, "big")
    for start in range(0, len(padded), 128):
        words = [int.from_bytes(padded[at : at + 8], "big") for at in range(start, start + 128, 8)]
        a, b, c, d, e, f, g, h = state
        for i in range(80):
            if i >= 16:
                w, v = words[i - 15], words[i - 2]
                words.append(
                    words[i - 16]
                    + words[i - 7]
                    + (_turn(w, 1) ^ _turn(w, 8) ^ w >> 7)
                    + (_turn(v, 19) ^ _turn(v, 61) ^ v >> 6)
                    & _MASK
                )
            first = (
                h
                + (_turn(e, 14) ^ _turn(e, 18) ^ _turn(e, 41))
                + (e & f ^ (e ^ _MASK) & g)
                + constants[i]
                + words[i]
            )
            second = (_turn(a, 28) ^ _turn(a, 34) ^ _turn(a, 39)) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = first + second & _MASK, a, b, c, d + first & _MASK, e, f, g
        state = [x + y & _MASK for x, y in zip(state, (a, b, c, d, e, f, g, h))]  # noqa: B905
        feed()
    return b"".join([word.to_bytes(8, "big") for word in state])


def _turn(word, by):
    return word >> by | word << 64 - by & _MASK


def _primes(count):
    found = []
    candidate = 2
    while len(found) < count:
        for prime in found:
            if candidate % prime == 0:
                break
        else:
            found.append(candidate)
        candidate += 1
    return found


def _root(value, degree):
    """The integer root of degree 2 or 3, by Newton's method from above."""
    root = 1 << 70 + 2 * (3 - degree)
    while True:
        lower = ((degree - 1) * root + value // root ** (degree - 1)) // degree
        if lower >= root:
            return root
        root = lower
