"""Names of the OPC UA status codes that a person may meet in a mirror.

A StatusCode is 32 bits. The upper half says what it is and has a name; the lower half holds flags, such
as limits and the overflow bit, and does not change the name.

Source: OPC UA Part 4, 7.39; Part 6, annex A.2.
"""

from __future__ import annotations


def status_name(code: int) -> str:
    """Return the name of a status code (0 to 2**32 - 1), or `0x8FAB0480` for one that has none here."""
    return _NAMES.get(code >> 16) or f"0x{code:08X}"


_NAMES = {
    0x0000: "Good", 0x002D: "GoodSubscriptionTransferred", 0x002E: "GoodCompletesAsynchronously",
    0x002F: "GoodOverload", 0x0030: "GoodClamped", 0x0096: "GoodLocalOverride", 0x00A2: "GoodEntryInserted",
    0x00A3: "GoodEntryReplaced", 0x00A5: "GoodNoData", 0x00A6: "GoodMoreData", 0x00A7: "GoodCommunicationEvent",
    0x00A8: "GoodShutdownEvent", 0x00A9: "GoodCallAgain", 0x00AA: "GoodNonCriticalTimeout",
    0x00BA: "GoodResultsMayBeIncomplete", 0x00D9: "GoodDataIgnored", 0x00DC: "GoodEdited",
    0x00DD: "GoodPostActionFailed", 0x00DF: "GoodRetransmissionQueueNotSupported",
    0x00E0: "GoodDependentValueChanged", 0x4000: "Uncertain", 0x406C: "UncertainReferenceOutOfServer",
    0x408F: "UncertainNoCommunicationLastUsableValue", 0x4090: "UncertainLastUsableValue",
    0x4091: "UncertainSubstituteValue", 0x4092: "UncertainInitialValue", 0x4093: "UncertainSensorNotAccurate",
    0x4094: "UncertainEngineeringUnitsExceeded", 0x4095: "UncertainSubNormal", 0x40A4: "UncertainDataSubNormal",
    0x40DE: "UncertainDominantValueChanged", 0x40E2: "UncertainDependentValueChanged",
    0x4208: "UncertainTransducerInManual", 0x4209: "UncertainSimulatedValue",
    0x420A: "UncertainSensorCalibration", 0x420F: "UncertainConfigurationError", 0x8000: "Bad",
    0x8001: "BadUnexpectedError", 0x8002: "BadInternalError", 0x8003: "BadOutOfMemory",
    0x8004: "BadResourceUnavailable", 0x8005: "BadCommunicationError", 0x8006: "BadEncodingError",
    0x8007: "BadDecodingError", 0x8008: "BadEncodingLimitsExceeded", 0x8009: "BadUnknownResponse",
    0x800A: "BadTimeout", 0x800B: "BadServiceUnsupported", 0x800C: "BadShutdown",
    0x800D: "BadServerNotConnected", 0x800E: "BadServerHalted", 0x800F: "BadNothingToDo",
    0x8010: "BadTooManyOperations", 0x8011: "BadDataTypeIdUnknown", 0x8012: "BadCertificateInvalid",
    0x8013: "BadSecurityChecksFailed", 0x8014: "BadCertificateTimeInvalid",
    0x8015: "BadCertificateIssuerTimeInvalid", 0x8016: "BadCertificateHostNameInvalid",
    0x8017: "BadCertificateUriInvalid",
    0x8018: "BadCertificateUseNotAllowed", 0x8019: "BadCertificateIssuerUseNotAllowed",
    0x801A: "BadCertificateUntrusted", 0x801B: "BadCertificateRevocationUnknown",
    0x801C: "BadCertificateIssuerRevocationUnknown", 0x801D: "BadCertificateRevoked",
    0x801E: "BadCertificateIssuerRevoked",
    0x801F: "BadUserAccessDenied", 0x8020: "BadIdentityTokenInvalid", 0x8021: "BadIdentityTokenRejected",
    0x8022: "BadSecureChannelIdInvalid", 0x8023: "BadInvalidTimestamp", 0x8024: "BadNonceInvalid",
    0x8025: "BadSessionIdInvalid", 0x8026: "BadSessionClosed", 0x8027: "BadSessionNotActivated",
    0x8028: "BadSubscriptionIdInvalid", 0x802A: "BadRequestHeaderInvalid",
    0x802B: "BadTimestampsToReturnInvalid", 0x802C: "BadRequestCancelledByClient", 0x8031: "BadNoCommunication",
    0x8032: "BadWaitingForInitialData", 0x8033: "BadNodeIdInvalid", 0x8034: "BadNodeIdUnknown",
    0x8035: "BadAttributeIdInvalid", 0x8036: "BadIndexRangeInvalid", 0x8037: "BadIndexRangeNoData",
    0x8038: "BadDataEncodingInvalid", 0x8039: "BadDataEncodingUnsupported", 0x803A: "BadNotReadable",
    0x803B: "BadNotWritable", 0x803C: "BadOutOfRange", 0x803D: "BadNotSupported", 0x803E: "BadNotFound",
    0x803F: "BadObjectDeleted", 0x8040: "BadNotImplemented", 0x8041: "BadMonitoringModeInvalid",
    0x8042: "BadMonitoredItemIdInvalid", 0x8043: "BadMonitoredItemFilterInvalid",
    0x8044: "BadMonitoredItemFilterUnsupported", 0x8045: "BadFilterNotAllowed",
    0x804A: "BadContinuationPointInvalid", 0x804B: "BadNoContinuationPoints", 0x8054: "BadSecurityModeRejected",
    0x8055: "BadSecurityPolicyRejected", 0x8056: "BadTooManySessions",
    0x8057: "BadUserSignatureInvalid", 0x8058: "BadApplicationSignatureInvalid",
    0x8071: "BadHistoryOperationInvalid", 0x8072: "BadHistoryOperationUnsupported",
    0x8073: "BadWriteNotSupported", 0x8074: "BadTypeMismatch", 0x8077: "BadTooManySubscriptions",
    0x8078: "BadTooManyPublishRequests", 0x8079: "BadNoSubscription", 0x807A: "BadSequenceNumberUnknown",
    0x807B: "BadMessageNotAvailable", 0x807D: "BadTcpServerTooBusy", 0x807E: "BadTcpMessageTypeInvalid",
    0x807F: "BadTcpSecureChannelUnknown", 0x8080: "BadTcpMessageTooLarge", 0x8081: "BadTcpNotEnoughResources",
    0x8082: "BadTcpInternalError", 0x8083: "BadTcpEndpointUrlInvalid", 0x8085: "BadRequestTimeout",
    0x8086: "BadSecureChannelClosed", 0x8088: "BadSequenceNumberInvalid", 0x8089: "BadConfigurationError",
    0x808A: "BadNotConnected", 0x808B: "BadDeviceFailure", 0x808C: "BadSensorFailure",
    0x808D: "BadOutOfService", 0x808E: "BadDeadbandFilterInvalid", 0x809B: "BadNoData", 0x809D: "BadDataLost",
    0x809E: "BadDataUnavailable", 0x809F: "BadEntryExists", 0x80A0: "BadNoEntryExists",
    0x80A1: "BadTimestampNotSupported", 0x80AB: "BadInvalidArgument", 0x80AC: "BadConnectionRejected",
    0x80AD: "BadDisconnect", 0x80AE: "BadConnectionClosed", 0x80AF: "BadInvalidState", 0x80B0: "BadEndOfStream",
    0x80B1: "BadNoDataAvailable", 0x80B5: "BadWouldBlock", 0x80B6: "BadSyntaxError",
    0x80B7: "BadMaxConnectionsReached", 0x80B8: "BadRequestTooLarge", 0x80B9: "BadResponseTooLarge",
    0x80BE: "BadProtocolVersionUnsupported", 0x80D5: "BadAggregateNotSupported", 0x80D7: "BadBoundNotFound",
    0x80D8: "BadBoundNotSupported", 0x80DB: "BadTooManyMonitoredItems", 0x80E1: "BadDominantValueChanged",
    0x80E3: "BadDependentValueChanged", 0x80E6: "BadSecurityModeInsufficient",
    0x80E9: "BadLocked", 0x80EA: "BadIndexRangeDataMismatch",
    0x80EE: "BadServerTooBusy", 0x80F0: "BadNoValue", 0x810D: "BadCertificateChainIncomplete",
    0x810E: "BadLicenseExpired", 0x8114: "BadCertificatePolicyCheckFailed",
}  # fmt: skip
