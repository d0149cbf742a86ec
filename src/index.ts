export type { Broker, BrokerEntry, BrokerSink, BrokerStats } from './broker.ts'
export { SseError, type SseErrorCode } from './errors.ts'
export { encode, type Newline, type SseEvent } from './event.ts'
export { EventStream } from './event-stream.ts'
export { Hub } from './hub.ts'
export type {
  EventOf,
  HistoryOptions,
  HubEvents,
  HubOptions,
  HubPipeOptions,
  HubStats,
  MappedHubPipeOptions,
  SubscriberContext,
  SubscriberMiddleware,
} from './hub-options.ts'
export { MemoryBroker, type MemoryBrokerOptions } from './memory-broker.ts'
export { sse, type SseContext, type SseMiddleware } from './middleware.ts'
export type { CloseReason } from './outcome.ts'
export type { HubEvent } from './shared-event.ts'
export type { CloseOptions } from './shutdown.ts'
export type { Items, MappedPipeOptions, PipeOptions, Source } from './source.ts'
export type { SubscribeOptions, Subscription } from './subscription.ts'
export type { SseOptions } from './sse-options.ts'
