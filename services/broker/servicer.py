"""Wire to domain; decides nothing."""

from __future__ import annotations

from teemesh.broker.v1 import broker_pb2 as pb
from teemesh.broker.v1 import broker_pb2_grpc as pb_grpc

from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from services.broker.admission import Admission
from services.broker.configuration import permissions

_SERVICE = "teemesh.broker.v1.BrokerService"


class BrokerServicer(pb_grpc.BrokerServiceServicer):
    """See `broker.proto`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def Admit(self, request: pb.AdmitRequest, context: Context) -> pb.AdmitResponse:  # noqa: N802
        await self._admission.admit(current_caller().spki_sha256)
        return pb.AdmitResponse()


def broker_binding(servicer: BrokerServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_BrokerServiceServicer_to_server(servicer, server),
        methods={f"/{_SERVICE}/Admit": MethodRule(roles=frozenset(permissions()))},
    )
