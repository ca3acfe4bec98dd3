# SPDX-License-Identifier: Apache-2.0
"""What writes the generated pages."""
