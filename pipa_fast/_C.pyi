# SPDX-License-Identifier: Apache-2.0
# Importing it registers torch.ops.pipa_fast_cpu; it holds nothing else.
