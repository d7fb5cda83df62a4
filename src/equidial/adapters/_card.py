"""The model card of a saved folder."""

from __future__ import annotations

from equidial._version import __version__
from equidial.adapters._config import SoftEquivarianceConfig
from equidial.certificates import Certificate


def model_card(base: str, config: SoftEquivarianceConfig, certificate: Certificate) -> str:
    """Markdown: base model, group, dial, how to load, and the certificate."""
    rows = "\n".join(
        f"| `{row.name}` | {row.representation} | {row.dial} | {row.bound:.4g} | {row.kind} | {row.level} |"
        for row in certificate
    )
    return f"""---
library_name: equidial
tags:
- equivariance
- soft-equivariance
---

# Soft-equivariant {base.rpartition(".")[2]}

| | |
|---|---|
| base model | `{base}` |
| group | {config.group} |
| dial | {config.dial} |
| response | {config.response} |
| written by | equidial {__version__} |

```python
import equidial as ed

model = ed.load(base_model, "this-folder")   # base_model: the checkpoint from which this was made
model = ed.fold(model)                       # a plain model
```

## Certificate

Largest relative defect of any constrained tensor: {certificate.bound:.4g}. Per tensor, over the elements named in
`certificate.json`; the error of the whole network is measured, not certified here.

| tensor | representation | dial | bound | kind | level |
|---|---|---|---|---|---|
{rows}
"""
