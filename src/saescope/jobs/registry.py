"""Every request by its verb: what a surface can ask for."""

from collections.abc import Mapping

from saescope.jobs.bake import BakeRequest
from saescope.jobs.demo import DemoRequest
from saescope.jobs.diff import DiffRequest
from saescope.jobs.evaluate import EvaluateRequest
from saescope.jobs.export import ExportRequest
from saescope.jobs.plan import FetchRequest, PlanRequest
from saescope.jobs.questions import QUESTIONS
from saescope.jobs.report import ReportRequest
from saescope.jobs.request import Request
from saescope.jobs.rerun import RerunRequest
from saescope.jobs.scan import ScanRequest
from saescope.jobs.select import SelectRequest
from saescope.jobs.steer import SteerRequest
from saescope.jobs.verify import VerifyRequest

_OTHERS: tuple[type[Request], ...] = (
    BakeRequest,
    DemoRequest,
    DiffRequest,
    EvaluateRequest,
    ExportRequest,
    FetchRequest,
    PlanRequest,
    ReportRequest,
    RerunRequest,
    ScanRequest,
    SelectRequest,
    SteerRequest,
    VerifyRequest,
)
REQUESTS: Mapping[str, type[Request]] = {
    **QUESTIONS,
    **{request.verb: request for request in _OTHERS},
}
