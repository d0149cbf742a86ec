export { RedisBroker, type RedisBrokerOptions, type RedisBrokerStats } from './redis-broker.ts'
