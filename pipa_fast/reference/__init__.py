# SPDX-License-Identifier: Apache-2.0
"""Every op as the textbook writes it, in plain torch: the oracle and the fallback.

The native ops' files hold the `forward` and `backward` of the "reference" backend; call them
through `ops.NAME(..., backend="reference")`. The other files hold what tests compare an op with.
"""
