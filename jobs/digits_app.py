"""Serve the digits classifier over HTTP.

Run: raykube service deploy NAME jobs.digits_app:app --model run:RUN
"""

from __future__ import annotations

from jobs import _digits
from raykube.inside import serving

app = serving.application(_digits.load, _digits.predict)
